package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cluster"
	"unipod.dev/unipod/internal/node"
	"unipod.dev/unipod/internal/progress"
)

// statusPatience is how long a part of the node has to answer a status.
const statusPatience = 5 * time.Second

// A nodeStatus is what `unipod status` tells.
type nodeStatus struct {
	Running bool   `json:"running"`
	Process string `json:"process,omitempty"` // that runs it
	Root    string `json:"root"`
	Run     string `json:"run"`

	Runtime string         `json:"runtime,omitempty"`
	API     string         `json:"api,omitempty"`
	Version string         `json:"version,omitempty"` // of the API
	Node    string         `json:"node,omitempty"`
	Age     string         `json:"age,omitempty"`
	Pods    map[string]int `json:"pods"` // by phase
	Images  int            `json:"images"`
	// Bytes of the images, and of the file system they are on.
	ImageBytes int64 `json:"imageBytes"`
	DiskFree   int64 `json:"diskFree"`
	DiskSize   int64 `json:"diskSize"`
	// Problems are what somebody should look at, a sentence each.
	Problems []string `json:"problems"`
}

func newStatus(g *global) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the node is",
		Long: `Show how the node is: whether it runs and answers, its pods, images and disk, and
what is wrong with any of them.

Exit codes: 0 it runs and nothing is wrong; 1 it runs and something is; 3 it
doesn't run.`,
		Example: `  unipod status
  unipod status -o json | jq -r '.problems[]'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			s := g.status(ctx)
			if err := write(cmd.OutOrStdout(), format, s, s.print); err != nil {
				return err
			}
			switch {
			case !s.Running:
				return &codeError{3, nil}
			case len(s.Problems) > 0:
				return &codeError{1, nil}
			}
			return nil
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

// status asks every part of the node; what doesn't answer is a problem.
func (g *global) status(ctx context.Context) *nodeStatus {
	s := &nodeStatus{Root: g.root, Run: g.run, Pods: map[string]int{}, Problems: []string{}}
	problem := func(format string, args ...any) { s.Problems = append(s.Problems, fmt.Sprintf(format, args...)) }
	var fs unix.Statfs_t
	if err := unix.Statfs(g.root, &fs); err == nil {
		s.DiskSize, s.DiskFree = int64(fs.Blocks)*fs.Bsize, int64(fs.Bavail)*fs.Bsize
		if s.DiskFree < s.DiskSize/10 {
			problem("the disk of %s is nearly full: %s of %s are free (unipod image prune removes unused images)", g.root, progress.Bytes(s.DiskFree), progress.Bytes(s.DiskSize))
		}
	}
	holder, err := node.Holder(g.root)
	if err != nil {
		problem("%v", err)
	}
	if s.Running, s.Process = holder != "", holder; !s.Running {
		return s
	}
	for _, part := range []struct {
		name string
		ask  func(context.Context, *nodeStatus) error
	}{{"the runtime", g.runtimeStatus}, {"the Kubernetes API", g.apiStatus}} {
		asking, cancel := context.WithTimeout(ctx, statusPatience)
		if err := part.ask(asking, s); err != nil {
			problem("%s doesn't answer: %v", part.name, err)
		}
		cancel()
	}
	return s
}

// runtimeStatus asks the lower half of the node.
func (g *global) runtimeStatus(ctx context.Context, s *nodeStatus) error {
	n, err := g.connectNode(ctx)
	if err != nil {
		return err
	}
	defer n.Close(ctx)
	v, err := n.CRI().Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return err
	}
	s.Runtime = v.GetRuntimeName() + " " + v.GetRuntimeVersion()
	if n.Foreign() { // it keeps its images itself
		return nil
	}
	images, err := n.Images().List(ctx)
	if err != nil {
		return err
	}
	s.Images = len(images)
	for _, i := range images {
		s.ImageBytes += i.Size
	}
	return nil
}

// apiStatus asks the upper half.
func (g *global) apiStatus(ctx context.Context, s *nodeStatus) error {
	client, err := clientcmd.BuildConfigFromFlags("", filepath.Join(g.run, cluster.KubeconfigName))
	if err != nil {
		return err
	}
	s.API = client.Host
	if err := answers(ctx, client); err != nil {
		return err
	}
	c, err := kubernetes.NewForConfig(client)
	if err != nil {
		return err
	}
	v, err := c.Discovery().ServerVersion()
	if err != nil {
		return err
	}
	s.Version = v.GitVersion
	nodes, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	if len(nodes.Items) == 0 {
		s.Problems = append(s.Problems, "the API has no Node: no pod can be started")
	}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		s.Node, s.Age = n.Name, age(n.CreationTimestamp.Time)
		s.Problems = append(s.Problems, nodeProblems(n)...)
	}
	pods, err := c.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		s.Pods[string(p.Status.Phase)]++
		s.Problems = append(s.Problems, podProblems(p, time.Now())...)
	}
	return nil
}

// nodeProblems are the conditions of a Node that aren't as they should be.
func nodeProblems(n *v1.Node) []string {
	var all []string
	for _, c := range n.Status.Conditions {
		if good := v1.ConditionFalse; c.Type != v1.NodeReady && c.Status != good || c.Type == v1.NodeReady && c.Status != v1.ConditionTrue {
			all = append(all, fmt.Sprintf("node %s: %s is %s: %s", n.Name, c.Type, c.Status, cmp.Or(c.Message, c.Reason)))
		}
	}
	if n.Spec.Unschedulable {
		all = append(all, fmt.Sprintf("node %s is cordoned: nothing new is started (unipod uncordon %s)", n.Name, n.Name))
	}
	return all
}

// settling is how long a pod may take to become ready before that is worth a
// word.
const settling = time.Minute

// podProblems are why a pod isn't what its author wants.
func podProblems(p *v1.Pod, now time.Time) []string {
	name := p.Namespace + "/" + p.Name
	if p.Status.Phase == v1.PodSucceeded || p.DeletionTimestamp != nil {
		return nil
	}
	var all []string
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if w := s.State.Waiting; w != nil && w.Reason != "" && !slices.Contains([]string{"ContainerCreating", "PodInitializing"}, w.Reason) {
			all = append(all, fmt.Sprintf("pod %s: container %s waits: %s %s", name, s.Name, w.Reason, strings.ReplaceAll(w.Message, "\n", " ")))
		}
	}
	if len(all) > 0 {
		return all
	}
	if p.Status.Phase == v1.PodFailed {
		return []string{strings.TrimSuffix(fmt.Sprintf("pod %s failed: %s", name, cmp.Or(p.Status.Message, p.Status.Reason)), ": ")}
	}
	for _, c := range p.Status.Conditions {
		if c.Status == v1.ConditionTrue || now.Sub(c.LastTransitionTime.Time) < settling {
			continue
		}
		if c.Type == v1.PodScheduled || c.Type == v1.PodReady {
			all = append(all, fmt.Sprintf("pod %s: %s is %s for %s: %s", name, c.Type, c.Status, age(c.LastTransitionTime.Time), cmp.Or(c.Message, c.Reason)))
		}
	}
	return all
}

// print is the status for a person.
func (s *nodeStatus) print(w io.Writer) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-9s %s\n", name, fmt.Sprintf(format, args...))
	}
	if s.Running {
		line("node", "%s, runs (%s)", cmp.Or(s.Node, "unknown"), s.Process)
		line("runtime", "%s, on %s", cmp.Or(s.Runtime, "unknown"), s.Run)
		if s.API != "" {
			line("API", "%s, Kubernetes %s, %s old", s.API, cmp.Or(s.Version, "unknown"), cmp.Or(s.Age, "unknown"))
		}
		var phases []string
		total := 0
		for _, phase := range slices.Sorted(maps.Keys(s.Pods)) {
			total += s.Pods[phase]
			phases = append(phases, fmt.Sprintf("%d %s", s.Pods[phase], phase))
		}
		line("pods", "%d%s", total, map[bool]string{true: ": " + strings.Join(phases, ", ")}[total > 0])
		line("images", "%d, %s", s.Images, progress.Bytes(s.ImageBytes))
	} else {
		line("node", "doesn't run on %s (unipod serve runs it; systemctl start unipod, where the unit is installed)", s.Root)
	}
	if s.DiskSize > 0 {
		line("disk", "%s of %s free at %s", progress.Bytes(s.DiskFree), progress.Bytes(s.DiskSize), s.Root)
	}
	for i, p := range s.Problems {
		line(map[bool]string{true: "problems"}[i == 0], "%s", p)
	}
	if s.Running && len(s.Problems) == 0 {
		line("problems", "none")
	}
	_, err := io.WriteString(w, b.String())
	return err
}
