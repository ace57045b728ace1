package podspec

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	"sigs.k8s.io/yaml"

	"unipod.dev/unipod/test/golden"
)

var testNode = &Node{
	HostIPs:        []string{"192.0.2.1", "2001:db8::1"},
	Allocatable:    v1.ResourceList{v1.ResourceCPU: resource.MustParse("4"), v1.ResourceMemory: resource.MustParse("8Gi"), v1.ResourceEphemeralStorage: resource.MustParse("100Gi")},
	MemoryCapacity: 10 << 30,
	SwapCapacity:   2 << 30,
	LogDir:         "/var/log/pods",
	ClusterDomain:  "cluster.local",
	HostDNS:        &runtimeapi.DNSConfig{Servers: []string{"9.9.9.9"}, Searches: []string{"example.org"}, Options: []string{"timeout:1"}},
	SeccompRoot:    "/var/lib/kubelet/seccomp",
	HugePageSizes:  []string{"2MB", "1GB"},
}

// objects are the ConfigMaps and Secrets of a test's file.
type objects struct {
	configMaps map[string]*v1.ConfigMap
	secrets    map[string]*v1.Secret
}

func (o *objects) ConfigMap(namespace, name string) (*v1.ConfigMap, error) {
	if cm, ok := o.configMaps[namespace+"/"+name]; ok {
		return cm, nil
	}
	return nil, apierrors.NewNotFound(v1.Resource("configmap"), name)
}

func (o *objects) Secret(namespace, name string) (*v1.Secret, error) {
	if s, ok := o.secrets[namespace+"/"+name]; ok {
		return s, nil
	}
	return nil, apierrors.NewNotFound(v1.Resource("secret"), name)
}

// read reads a pod, defaulted, and the objects it refers to.
func read(t *testing.T, file string) (*v1.Pod, *objects, *testInput) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var pod *v1.Pod
	o := &objects{map[string]*v1.ConfigMap{}, map[string]*v1.Secret{}}
	input := &testInput{}
	for _, doc := range strings.Split(string(text), "\n---\n") {
		if strings.HasPrefix(strings.TrimSpace(doc), "input:") {
			var in struct{ Input *testInput }
			if err := yaml.UnmarshalStrict([]byte(doc), &in); err != nil {
				t.Fatal(err)
			}
			input = in.Input
			continue
		}
		obj, _, err := legacyscheme.Codecs.UniversalDeserializer().Decode([]byte(doc), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		legacyscheme.Scheme.Default(obj)
		switch obj := obj.(type) {
		case *v1.Pod:
			pod = obj
		case *v1.ConfigMap:
			o.configMaps[obj.Namespace+"/"+obj.Name] = obj
		case *v1.Secret:
			o.secrets[obj.Namespace+"/"+obj.Name] = obj
		}
	}
	return pod, o, input
}

// testInput is what a test's file says of the world.
type testInput struct {
	PodIPs     []string
	ClusterDNS []string
	ImageUser  string
	ImageUID   *int64
	UserNS     bool
	CgroupV2   bool
	Swap       bool
	Services   []*v1.Service
}

// TestGolden translates every pod of testdata and compares all of it.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no test data", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			golden.Check(t, strings.TrimSuffix(file, ".yaml")+".want", translate(t, file))
		})
	}
}

func translate(t *testing.T, file string) string {
	pod, objs, in := read(t, file)
	node := *testNode
	node.ClusterDNS, node.CgroupV2, node.SwapController, node.LimitedSwap = in.ClusterDNS, in.CgroupV2, in.Swap, in.Swap
	var userNS *runtimeapi.UserNamespace
	if in.UserNS {
		ids := []*runtimeapi.IDMapping{{HostId: 65536, Length: 65536}}
		userNS = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	}
	image := &runtimeapi.Image{Username: in.ImageUser}
	if in.ImageUID != nil {
		image.Uid = &runtimeapi.Int64Value{Value: *in.ImageUID}
	}
	var b strings.Builder
	section := func(name string, value any, err error) {
		b.WriteString("=== " + name + "\n")
		switch {
		case err != nil:
			if ce, ok := errors.AsType[*ConfigError](err); ok {
				b.WriteString(ce.Reason() + ": ")
			}
			b.WriteString(err.Error() + "\n")
		default:
			b.WriteString(asYAML(t, value))
		}
	}
	sandbox, warnings, err := SandboxConfig(&node, pod, SandboxOptions{Attempt: 1, CgroupParent: "/unipod/pod" + string(pod.UID), UserNS: userNS})
	section("sandbox", sandbox, err)
	for _, w := range warnings {
		b.WriteString("# " + w.Reason + ": " + w.Message + "\n")
	}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			c := &list[i]
			env, err := Environment(&node, pod, c, EnvOptions{Objects: objs, PodIPs: in.PodIPs, Services: in.Services, EnvFile: envFile})
			if err != nil {
				section(c.Name, nil, err)
				continue
			}
			config, err := ContainerConfig(&node, pod, c, ContainerOptions{RestartCount: 2, Image: image, ImageRef: "sha256:1234", Env: env,
				Mounts: []*runtimeapi.Mount{{HostPath: "/host", ContainerPath: "/container"}}, UserNS: userNS})
			if config != nil {
				// What depends on the machine the test runs on.
				config.Linux.SecurityContext.MaskedPaths = summary(config.Linux.SecurityContext.MaskedPaths)
				config.Linux.SecurityContext.ReadonlyPaths = summary(config.Linux.SecurityContext.ReadonlyPaths)
			}
			section(c.Name, config, err)
		}
	}
	return b.String()
}

func summary(paths []string) []string {
	if len(paths) == 0 {
		return nil
	}
	return []string{"Kubernetes' default"}
}

// envFile is a volume "env" with the file "ok", in which KEY is set.
func envFile(volume, path, key string) (string, bool, error) {
	switch {
	case volume != "env" || path != "ok":
		return "", false, errors.New("no such file")
	case key != "KEY":
		return "", false, nil
	}
	return "value", true, nil
}

// asYAML prints a message; environment values, which are bytes, as text.
func asYAML(t *testing.T, value any) string {
	t.Helper()
	text, err := protojson.Marshal(value.(proto.Message))
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := json.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	if config, ok := value.(*runtimeapi.ContainerConfig); ok && len(config.Envs) > 0 {
		var env []string
		for _, e := range config.Envs {
			env = append(env, e.Key+"="+string(e.Value))
		}
		tree["envs"] = env
	}
	out, err := yaml.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestParseContainer(t *testing.T) {
	pod, objs, _ := read(t, "testdata/basic.yaml")
	pod.DeletionGracePeriodSeconds = new(int64)
	c := &pod.Spec.Containers[0]
	env, err := Environment(testNode, pod, c, EnvOptions{Objects: objs})
	if err != nil {
		t.Fatal(err)
	}
	config, err := ContainerConfig(testNode, pod, c, ContainerOptions{RestartCount: 7, Env: env})
	if err != nil {
		t.Fatal(err)
	}
	info, err := ParseContainer(config.Labels, config.Annotations)
	if err != nil {
		t.Fatal(err)
	}
	want := ContainerInfo{PodName: "web", PodNamespace: "prod", PodUID: "uid-web", Name: "nginx", Hash: Hash(c), RestartCount: 7,
		TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: "File", DeletionGrace: new(int64),
		TerminationGrace: pod.Spec.TerminationGracePeriodSeconds, PreStop: c.Lifecycle.PreStop, Ports: c.Ports}
	if diff := cmp.Diff(want, info); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for key := range maps.Keys(config.Annotations) {
		if strings.HasSuffix(key, "Path") || strings.HasSuffix(key, "Policy") {
			continue // any text is one
		}
		bad := maps.Clone(config.Annotations)
		bad[key] = "{"
		if _, err := ParseContainer(config.Labels, bad); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("a damaged %s: got %v", key, err)
		}
	}
	if _, err := ParseContainer(nil, nil); err != nil {
		t.Errorf("a container of somebody else's: %v", err)
	}
}

func TestHashIsKubelets(t *testing.T) {
	// From kubelet's own test of its hash.
	c := &v1.Container{Name: "test_container", Image: "foo/image:v1"}
	if got := Hash(c); got != 0x8e45cbd0 {
		t.Errorf("got %#x", got)
	}
	d := c.DeepCopy()
	d.Env = []v1.EnvVar{{Name: "A"}}
	if Hash(d) != Hash(c) {
		t.Error("a field that can't make a container new changed the hash")
	}
}

func FuzzParseContainer(f *testing.F) {
	f.Add("1f", "3", "30", `{"sleep":{"seconds":1}}`, `[{"containerPort":80}]`)
	f.Fuzz(func(t *testing.T, hash, restarts, grace, preStop, ports string) {
		a := map[string]string{annotationHash: hash, annotationRestartCount: restarts, annotationTerminationGrace: grace,
			annotationDeletionGrace: grace, annotationPreStop: preStop, annotationPorts: ports}
		_, _ = ParseContainer(nil, a) // must not panic
	})
}

func TestSortPodIPs(t *testing.T) {
	ips := []string{"bad", "fd00::1", "10.0.0.2", "fd00::2", "10.0.0.3"}
	if got := SortPodIPs(&Node{HostIPs: []string{"192.0.2.1"}}, ips); !slices.Equal(got, []string{"10.0.0.2", "fd00::1"}) {
		t.Errorf("IPv4 first: got %q", got)
	}
	if got := SortPodIPs(&Node{HostIPs: []string{"2001:db8::1"}}, ips); !slices.Equal(got, []string{"fd00::1", "10.0.0.2"}) {
		t.Errorf("IPv6 first: got %q", got)
	}
}

// BenchmarkTranslate makes the sandbox and one container of a pod: part of each
// start, for which the goal is 10 ms.
func BenchmarkTranslate(b *testing.B) {
	pod := &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c", Image: "i", Env: []v1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "$(A)"}}}}}}
	pod.Name, pod.Namespace, pod.UID = "web", "ns", "uid"
	for b.Loop() {
		if _, _, err := SandboxConfig(testNode, pod, SandboxOptions{}); err != nil {
			b.Fatal(err)
		}
		env, err := Environment(testNode, pod, &pod.Spec.Containers[0], EnvOptions{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := ContainerConfig(testNode, pod, &pod.Spec.Containers[0], ContainerOptions{Env: env}); err != nil {
			b.Fatal(err)
		}
	}
}
