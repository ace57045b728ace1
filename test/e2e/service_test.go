package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// guest builds directory guest: static, as the image has no libraries.
func guest(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "guest")
	cmd := exec.Command("go", "build", "-trimpath", "-tags", "containers_image_openpgp", "-o", path, "./guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the guest: %v\n%s", err, out)
	}
	return path
}

// wayOut gives the host a default route, without which nothing of its own
// leaves it.
func wayOut(t *testing.T) {
	t.Helper()
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out0"}, PeerName: "out1"}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.LinkDel(link) })
	for _, name := range []string{"out0", "out1"} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	out, err := netlink.LinkByName("out0")
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := netlink.ParseAddr("192.0.2.1/24")
	if err := netlink.AddrAdd(out, addr); err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: out.Attrs().Index, Gw: net.IPv4(192, 0, 2, 254)}); err != nil {
		t.Fatal(err)
	}
}

// mounted is a container with the guest in it.
const mounted = `
    volumeMounts: [{name: guest, mountPath: /guest}]
  volumes: [{name: guest, hostPath: {path: GUEST, type: File}}]
`

const account = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: default}]
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [pods], verbs: [list]}]
`

// inCluster is a pod that uses the API as it finds it.
// It tries again: as in any cluster, a node's first pod may be there a moment
// before its Services are.
func inCluster(guest, name, extra string) string {
	return strings.ReplaceAll(`---
apiVersion: v1
kind: Pod
metadata: {name: `+name+`}
spec:
  restartPolicy: OnFailure
  serviceAccountName: reader`+extra+`
  containers:
  - name: a
    image: IMAGE
    command: [/guest, api]`+mounted, "GUEST", guest)
}

// TestInClusterPlay: a pod of an ephemeral node uses the API, with its
// account's rights.
func TestInClusterPlay(t *testing.T) {
	n := newNode(t)
	code, out := n.Do("play", n.file("api.yaml", account+inCluster(guest(t), "p", "")))
	if code != 0 || !strings.Contains(out, "p/a | at https://10.67.0.1:443 pods: 1") || !strings.Contains(out, "p/a | secrets: refused") {
		t.Errorf("code %d\n%s", code, out)
	}
}

// TestInClusterServe: so does one of serve, and one in the host's network.
func TestInClusterServe(t *testing.T) {
	n := newNode(t)
	wayOut(t)
	bin := guest(t)
	serve := n.Start("serve", "--manifests", filepath.Join(n.Dir, "manifests"))
	serve.Says("serving the Kubernetes API")
	n.ok("apply", "-f", n.file("account.yaml", account))
	for name, extra := range map[string]string{"p": "", "hostly": "\n  hostNetwork: true"} {
		n.ok("apply", "-f", n.file(name+".yaml", inCluster(bin, name, extra)))
		if code, out := n.Do("wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=30s", "pod/"+name); code != 0 {
			_, logs := n.Do("logs", name)
			t.Fatalf("%s: %s\n%s", name, out, logs)
		}
		if out := n.ok("logs", name); !strings.Contains(out, "secrets: refused") {
			t.Errorf("%s: %s", name, out)
		}
	}
	n.gone("p", "hostly")
	serve.Signal(syscall.SIGTERM)
	serve.Code()
}

// gone deletes pods and waits until the machine has nothing of them.
func (n *node) gone(pods ...string) {
	n.T.Helper()
	for _, name := range pods {
		n.ok("delete", "pod", name)
		for code := 0; code == 0; pause() {
			code, _ = n.Do("anatomy", name)
		}
	}
}

// ok runs a command that must succeed and returns what it printed.
func (n *node) ok(args ...string) string {
	n.T.Helper()
	code, out := n.Do(args...)
	if code != 0 {
		n.T.Fatalf("%v: code %d\n%s", args, code, out)
	}
	return out
}

// TestService: three replicas behind a cluster IP, reached by another pod and
// by the host, over TCP and UDP; one that isn't ready gets nothing; a rollout
// refuses nobody; and the node is killed meanwhile.
func TestService(t *testing.T) {
	n := newNode(t)
	wayOut(t)
	bin := guest(t)
	manifests := filepath.Join(n.Dir, "manifests")
	serve := n.Start("serve", "--manifests", manifests)
	serve.Says("serving the Kubernetes API")
	n.ok("apply", "-f", n.file("web.yaml", strings.ReplaceAll(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.67.0.80
  selector: {app: web}
  ports: [{name: say, port: 80, targetPort: say}, {name: say-udp, port: 80, protocol: UDP, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: a
        image: localhost/unipod-demo:1
        imagePullPolicy: Never
        command: [/guest, serve]
        ports: [{name: say, containerPort: 8080}]
        readinessProbe: {periodSeconds: 1, httpGet: {port: 8081}}
        volumeMounts: [{name: guest, mountPath: /guest}]
      volumes: [{name: guest, hostPath: {path: GUEST, type: File}}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: a, image: localhost/unipod-demo:1, imagePullPolicy: Never, command: [sleep, "10000"], volumeMounts: [{name: guest, mountPath: /guest}]}
  volumes: [{name: guest, hostPath: {path: GUEST, type: File}}]
`, "GUEST", bin)))
	n.ok("rollout", "status", "deployment/web", "--timeout=60s")
	n.ok("wait", "--for=condition=Ready", "--timeout=30s", "pod/client")
	const vip = "10.67.0.80:80"
	pods := func() []string {
		return strings.Fields(n.ok("get", "pods", "-l", "app=web", "--sort-by=.metadata.name", "-o", "jsonpath={.items[*].metadata.name}"))
	}
	// fromPod asks by TCP, or UDP, and returns who answered.
	fromPod := func(how string, times int) string {
		return strings.Join(strings.Fields(n.ok("exec", "client", "--", "/guest", how, vip, strconv.Itoa(times))), " ")
	}
	fromHost := func(times int) string {
		out, err := exec.Command(bin, "ask", vip, strconv.Itoa(times)).CombinedOutput()
		if err != nil {
			t.Fatalf("from the host: %v\n%s", err, out)
		}
		return strings.Join(strings.Fields(string(out)), " ")
	}
	settle := func(what string, want func() string, ask func() string) {
		t.Helper()
		for range 100 {
			if ask() == want() {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Fatalf("%s: %s answer, not %s", what, ask(), want())
	}
	every := func() string { return strings.Join(pods(), " ") }
	settle("a pod", every, func() string { return fromPod("ask", 100) })
	settle("the host", every, func() string { return fromHost(100) })
	settle("datagrams", every, func() string { return fromPod("ask-udp", 100) })

	// One of them isn't ready any more.
	lame := pods()[0]
	n.ok("exec", lame, "--", "touch", "/tmp/not-ready")
	left := func() string { return strings.Join(pods()[1:], " ") }
	settle("without the lame one", left, func() string { return fromPod("ask", 100) })
	n.ok("exec", lame, "--", "rm", "/tmp/not-ready")
	settle("with it again", every, func() string { return fromPod("ask", 100) })

	// The node dies; connections go on, and what changes meanwhile is seen by
	// the next.
	all := every()
	serve.Signal(syscall.SIGKILL)
	serve.Code()
	if got := fromHost(100); got != all {
		t.Errorf("while the node is dead %s answer, not %s", got, all)
	}
	serve = n.Start("serve", "--manifests", manifests)
	serve.Says("serving the Kubernetes API")

	// A rollout under load.
	asked := make(chan string, 1)
	go func() {
		out, err := exec.Command(bin, "ask", vip, "6s").CombinedOutput()
		if err != nil {
			out = append(out, err.Error()...)
		}
		asked <- string(out)
	}()
	n.ok("rollout", "restart", "deployment/web")
	n.ok("rollout", "status", "deployment/web", "--timeout=60s")
	if out := <-asked; strings.Contains(out, "connection") {
		t.Errorf("during the rollout: %s", out)
	}
	settle("after the rollout", every, func() string { return fromPod("ask", 100) })

	n.ok("scale", "deployment/web", "--replicas=0")
	// The last of them end, and then nobody is there.
	for refused := false; !refused; pause() {
		c, err := net.Dial("tcp", vip)
		if refused = err != nil; !refused {
			c.Close()
		}
	}
	n.ok("delete", "deployment", "web")
	n.gone("client")
	serve.Signal(syscall.SIGTERM)
	serve.Code()
}
