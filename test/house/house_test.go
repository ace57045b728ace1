// Package house holds the tests that keep unipod's house standing: which
// package may import which, and why. A floor stands only on the floors under
// it; above the line (internal/cri) nothing knows how a container is made,
// below it nothing knows what a Pod's life is.
//
// It reads source files only, of every build tag and operating system, so it
// promises the same answer on every machine. Floor: none; nothing imports it.
package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "unipod.dev/unipod/"

// A rule says what of unipod a package may import. The packages below a named
// one follow its rule unless they have their own.
type rule struct {
	floor int
	may   []string
	why   string
}

// The line is floor 4: what is under it makes containers, what is over it
// decides which.
const theLine = 4

var house = map[string]rule{
	"internal/sys":        {0, nil, "the ground: system calls, and nothing of ours"},
	"internal/version":    {0, nil, "a string"},
	"internal/podlisten":  {0, nil, "sockets for who is near; knows no pod"},
	"internal/linger":     {0, nil, "closes TCP connections, whoever uses them"},
	"internal/resolvconf": {0, nil, "a file format that both halves read"},
	"internal/fault":      {0, nil, "names points in other packages, and knows none of them"},
	"internal/klogs":      {0, nil, "turns log lines; knows who writes none of them"},

	"internal/recipe":   {1, []string{"internal/sys"}, "says how a container is made; does nothing itself"},
	"internal/cgroup":   {1, []string{"internal/sys"}, "owns control groups only"},
	"internal/security": {1, []string{"internal/sys"}, "turns policy into capability sets and filters"},
	"internal/network":  {1, []string{"internal/sys", "internal/resolvconf"}, "owns the bridge, addresses and ports only"},
	"internal/image":    {1, []string{"internal/sys"}, "owns images; a container is an owner's name to it"},
	"internal/device":   {1, []string{"internal/sys"}, "finds device nodes; knows no container"},
	"internal/crilog":   {1, nil, "writes log files; knows no container"},
	"internal/pause":    {2, []string{"internal/sys", "internal/recipe"}, "carries recipes to the pause process, and has no policy"},
	"internal/runtime": {3, []string{"internal/sys", "internal/version", "internal/recipe", "internal/cgroup", "internal/security", "internal/network",
		"internal/image", "internal/device", "internal/crilog", "internal/pause", "internal/fault", "internal/linger", "internal/cri"}, "implements the CRI over the floors below"},

	"internal/cri": {theLine, nil, "the line: only the CRI's own types cross it"},

	"internal/criserver":   {5, []string{"internal/cri"}, "the gRPC face of any runtime"},
	"internal/manifest":    {5, nil, "text to objects; needs no runtime to be wrong about a field"},
	"internal/apiserver":   {7, nil, "the Kubernetes API; store, keys and node are given to it"},
	"internal/pki":         {5, nil, "keys and certificates; knows neither who serves nor who stores"},
	"internal/lifecycle":   {5, nil, "pure: decides, never does"},
	"internal/timeline":    {5, nil, "pure: tells what the API's types say, whoever watched"},
	"internal/podspec":     {5, []string{"internal/resolvconf"}, "pure: a Pod in the CRI's words"},
	"internal/probe":       {5, []string{"internal/cri"}, "asks a container how it is, through the CRI"},
	"internal/volume":      {5, []string{"internal/sys"}, "files on disk; the runtime mounts them"},
	"internal/store":       {5, nil, "the API's objects on disk; knows no Pod and no node"},
	"internal/machine":     {6, []string{"internal/podspec"}, "answers podspec's questions about this machine"},
	"internal/controllers": {6, []string{"internal/klogs", "internal/volume"}, "upstream's control loops; the API is a client to them"},
	"internal/scheduler":   {6, []string{"internal/klogs"}, "upstream's scheduler; the API is a client to it"},
	"internal/engine": {6, []string{"internal/cri", "internal/lifecycle", "internal/podspec", "internal/probe", "internal/volume", "internal/sys"},
		"speaks to any CRI runtime, so it may know none"},

	"internal/stats":           {6, []string{"internal/cri", "internal/podspec", "internal/volume"}, "measures through the CRI and the kernel, and decides nothing"},
	"internal/upkeep/eviction": {5, nil, "pure: decides who must go"},
	"internal/upkeep/imagegc":  {5, nil, "pure: decides which images go"},
	"internal/upkeep": {7, []string{"internal/upkeep/eviction", "internal/upkeep/imagegc", "internal/cri", "internal/podspec", "internal/engine"},
		"keeps the node able to run pods, over the engine and the CRI"},

	"internal/service/plan":    {5, nil, "pure: where connections to a Service go"},
	"internal/service/ruleset": {6, []string{"internal/service/plan"}, "the kernel's part of Services; knows no API"},
	"internal/service":         {7, []string{"internal/service/plan", "internal/service/ruleset"}, "watches Services; the API is a client to it, and pods are addresses"},

	"internal/shutdown": {7, []string{"internal/engine"}, "ends pods when the machine goes, and knows logind only"},

	"internal/node": {7, []string{"internal/cri", "internal/criserver", "internal/runtime", "internal/image", "internal/network", "internal/cgroup",
		"internal/security", "internal/pause", "internal/sys", "internal/version"}, "the one place where the runtime is put together"},

	"internal/agent/objects":  {7, nil, "what pods refer to in the API; the engine's question, answered by a client"},
	"internal/agent/register": {7, []string{"internal/cri", "internal/machine"}, "the Node object tells of the machine and its runtime"},
	"internal/agent":          {8, []string{"internal/engine"}, "kubelet's part: between the API and the engine"},

	"internal/kubeletapi": {9, []string{"internal/cri", "internal/podspec", "internal/engine", "internal/logview"}, "kubelet's HTTP face; who runs the pods is given to it"},

	"internal/logview":        {8, nil, "reads CRI log files, whoever writes them"},
	"internal/progress":       {8, nil, "draws on a terminal"},
	"internal/anatomy":        {9, []string{"internal/progress"}, "describes and draws, and reads nothing"},
	"internal/anatomy/local":  {10, []string{"internal/anatomy", "internal/runtime"}, "the one face that reads the runtime's records"},
	"internal/bench":          {9, []string{"internal/cri", "internal/sys"}, "measures any CRI endpoint, and the bare system calls"},
	"internal/bench/apibench": {10, []string{"internal/bench"}, "measures any Kubernetes API by an ordinary client"},
	"internal/static":         {9, []string{"internal/manifest", "internal/engine", "internal/cri"}, "the engine's pods from a directory"},
	"internal/play":           {9, []string{"internal/manifest", "internal/volume", "internal/logview", "internal/progress", "internal/timeline", "internal/cri"}, "an API's objects in the foreground"},
	"internal/cluster": {10, []string{"internal/cri", "internal/engine", "internal/machine", "internal/pki", "internal/store", "internal/apiserver", "internal/controllers", "internal/scheduler",
		"internal/klogs", "internal/agent", "internal/kubeletapi", "internal/stats", "internal/upkeep", "internal/shutdown", "internal/static", "internal/volume", "internal/sys", "internal/linger", "internal/podlisten", "internal/service"}, "the one place where the upper half is put together"},
	"internal/kubectl": {10, nil, "upstream's commands on the node's kubeconfig; knows nothing else of a node"},
	"internal/backup":  {7, []string{"internal/pki", "internal/store"}, "one file out of keys and objects"},
	"internal/cli": {11, []string{"internal/kubectl", "internal/klogs", "internal/backup", "internal/pki", "internal/store", "internal/volume", "internal/cluster", "internal/play", "internal/static", "internal/anatomy", "internal/bench", "internal/logview", "internal/progress", "internal/timeline",
		"internal/node", "internal/machine", "internal/manifest", "internal/engine", "internal/image", "internal/cri", "internal/version", "internal/stats", "internal/upkeep", "internal/shutdown", "internal/service"}, "flags and tables; no decision of its own"},
	"cmd/unipod": {12, []string{"internal/cli"}, "main and nothing else"},
}

// A ban forbids an import everywhere but in some packages.
type ban struct {
	path   string // an import path; everything below it is banned too
	except []string
	why    string
}

var bans = []ban{
	{"C", nil, "the binary is static, and the one C program of ours is pause"},
	{"os/exec", []string{"internal/bench", "internal/security/apparmor"}, "containers are made by pause, never by a program found on PATH (bench runs its peers' command lines, apparmor the parser)"},
	{"log", nil, "log/slog, with the pod in its fields"},
	{"io/ioutil", nil, "deprecated"},
	{"github.com/pkg/errors", nil, "fmt.Errorf and %w"},
	{"github.com/opencontainers/runc", nil, "unipod has no OCI runtime inside it"},
	{"github.com/docker/docker", nil, "no daemon"},
	{"github.com/containers/storage", nil, "one image store: containerd's"},
	{"github.com/containerd/containerd", []string{"internal/image", "internal/runtime", "internal/security"}, "images and profiles are its only use"},
	{"go.podman.io", []string{"internal/image"}, "the user's registry configuration is its only use"},
	{"go.etcd.io/bbolt", []string{"internal/image"}, "the image store's own database; a pod's records are files"},
	{"github.com/vishvananda/netlink", []string{"internal/network", "internal/bench", "internal/service/ruleset", "internal/podlisten"}, "pods' links below the line, Services above it"},
	{"github.com/google/nftables", []string{"internal/network", "internal/service/ruleset"}, "a table of pods' network below the line, one of Services above it"},
	{"github.com/opencontainers/cgroups", []string{"internal/cgroup", "internal/runtime"}, "one floor knows cgroup drivers (runtime names the types of its figures)"},
	{"github.com/spf13/cobra", []string{"internal/cli", "internal/kubectl"}, "flags end at the command line (kubectl brings its own)"},
	{"k8s.io/client-go/kubernetes", []string{"internal/apiserver", "internal/controllers", "internal/scheduler", "internal/agent", "internal/kubeletapi", "internal/cluster", "internal/play", "internal/cli", "internal/bench/apibench"}, "the runtime and the engine are no clients of a cluster"},
	{"k8s.io/kubernetes/pkg/kubelet", []string{"internal/podspec", "internal/volume", "internal/apiserver", "internal/upkeep", "internal/agent", "internal/static", "internal/kubeletapi", "internal/cluster"}, "its words are kept, its code is not ours to carry (but a few pure helpers)"},
}

// pure packages decide: what they know of the world is given to them.
var pure = map[string][]string{
	"internal/service/plan":    {"os", "net/http", "syscall", "golang.org/x/sys", "math/rand", "math/rand/v2"},
	"internal/timeline":        {"os", "net", "syscall", "golang.org/x/sys", "os/signal", "math/rand", "math/rand/v2"},
	"internal/upkeep/eviction": {"os", "net", "syscall", "golang.org/x/sys"},
	"internal/upkeep/imagegc":  {"os", "net", "syscall", "golang.org/x/sys"},
	"internal/lifecycle":       {"os", "net", "syscall", "golang.org/x/sys", "os/signal", "math/rand", "math/rand/v2"},
	"internal/recipe":          {"net", "os/signal", "math/rand", "math/rand/v2"},
}

type source struct {
	dir  string // relative to the repository
	file *ast.File
	name string
	test bool
}

func sources(t *testing.T) (*token.FileSet, []source) {
	t.Helper()
	root := filepath.Join("..", "..")
	fset := token.NewFileSet()
	var all []source
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); rel != "." && (strings.HasPrefix(n, ".") || n == "testdata" || n == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		all = append(all, source{filepath.ToSlash(filepath.Dir(rel)), f, filepath.ToSlash(rel), strings.HasSuffix(rel, "_test.go")})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 100 {
		t.Fatalf("only %d Go files found: this test looks in the wrong place", len(all))
	}
	return fset, all
}

// ruleFor finds the rule of a package: its own or the nearest above it.
func ruleFor(dir string) (name string, r rule, ok bool) {
	for name = dir; name != "."; name = filepath.ToSlash(filepath.Dir(name)) {
		if r, ok = house[name]; ok {
			return name, r, true
		}
	}
	return "", rule{}, false
}

func within(path, parent string) bool {
	return path == parent || strings.HasPrefix(path, parent+"/")
}

func imports(f *ast.File) []string {
	var paths []string
	for _, spec := range f.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			paths = append(paths, p)
		}
	}
	return paths
}

// TestFloors: what is built imports only what its rule allows. Tests may stand
// on any floor: they are not built in.
func TestFloors(t *testing.T) {
	_, all := sources(t)
	for _, s := range all {
		if s.test || within(s.dir, "test") {
			continue
		}
		name, r, ok := ruleFor(s.dir)
		if !ok {
			t.Errorf("%s: package %s has no place in the house; give it a floor in test/house, with the reason", s.name, s.dir)
			continue
		}
		for _, path := range imports(s.file) {
			target, ours := strings.CutPrefix(path, module)
			if !ours || within(target, name) {
				continue
			}
			if !slices.ContainsFunc(r.may, func(m string) bool { return within(target, m) }) {
				t.Errorf("%s imports %s: %s may not (%s)", s.name, target, name, r.why)
			}
		}
	}
}

// TestTable: the table itself keeps the order of the floors, so that no rule
// can be loosened into a cycle or a hole in the line.
func TestTable(t *testing.T) {
	for name, r := range house {
		if r.why == "" {
			t.Errorf("%s: a rule without a reason", name)
		}
		for _, m := range r.may {
			below, ok := house[m]
			switch {
			case !ok:
				t.Errorf("%s may import %s, which has no floor", name, m)
			case m == "internal/cri" && r.floor == theLine-1: // the runtime implements the line
			case below.floor >= r.floor:
				t.Errorf("%s (floor %d) may import %s (floor %d): not below it", name, r.floor, m, below.floor)
			}
			assembles := name == "internal/node" || name == "internal/cli" || name == "internal/anatomy/local"
			if r.floor > theLine && below.floor < theLine && below.floor > 0 && !assembles {
				t.Errorf("%s may import %s across the line: only internal/node assembles the halves", name, m)
			}
		}
	}
}

func TestBans(t *testing.T) {
	_, all := sources(t)
	for _, s := range all {
		if s.test || within(s.dir, "test") {
			continue
		}
		for _, path := range imports(s.file) {
			for _, b := range bans {
				// The standard library's log has a child that is welcome.
				banned := within(path, b.path) && path != "log/slog"
				if banned && !slices.ContainsFunc(b.except, func(e string) bool { return within(s.dir, e) }) {
					t.Errorf("%s imports %s: %s", s.name, path, b.why)
				}
			}
			for name, forbidden := range pure {
				if within(s.dir, name) && slices.ContainsFunc(forbidden, func(p string) bool { return within(path, p) }) {
					t.Errorf("%s imports %s: %s is pure", s.name, path, name)
				}
			}
		}
	}
}

// TestClock: a pure package is given the time.
func TestClock(t *testing.T) {
	fset, all := sources(t)
	for _, s := range all {
		if s.test || !within(s.dir, "internal/lifecycle") && !within(s.dir, "internal/timeline") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "Sleep", "After", "Tick", "NewTimer", "NewTicker", "AfterFunc"}, sel.Sel.Name) {
				t.Errorf("%s: time.%s in a pure package", fset.Position(sel.Pos()), sel.Sel.Name)
			}
			return true
		})
	}
}

var floorSaid = regexp.MustCompile(`Floor:? (\d+)`)

// TestPackageComments: every package says what it owns, in one place, and no
// other floor than the table.
func TestPackageComments(t *testing.T) {
	_, all := sources(t)
	docs := map[string]string{}
	for _, s := range all {
		if docs[s.dir] == "" {
			docs[s.dir] = ""
		}
		if s.file.Doc != nil {
			docs[s.dir] += s.file.Doc.Text()
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(docs)) {
		switch doc := docs[dir]; {
		case strings.TrimSpace(doc) == "":
			t.Errorf("%s: no package comment", dir)
		case floorSaid.MatchString(doc) && floorSaid.FindStringSubmatch(doc)[1] != strconv.Itoa(house[dir].floor) && house[dir].why != "":
			t.Errorf("%s: the package comment says %q; it is on floor %d", dir, floorSaid.FindString(doc), house[dir].floor)
		case within(dir, "internal") && len(strings.Fields(doc)) < 12:
			t.Errorf("%s: the package comment doesn't say what it owns and promises: %q", dir, doc)
		}
	}
}
