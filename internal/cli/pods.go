package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cri"
)

// A podView is one sandbox with its containers, as ps prints it.
type podView struct {
	Namespace  string          `json:"namespace"`
	Name       string          `json:"name"`
	UID        string          `json:"uid"`
	SandboxID  string          `json:"sandboxID"`
	State      string          `json:"state"`
	IPs        []string        `json:"ips"`
	Created    time.Time       `json:"created"`
	Containers []containerView `json:"containers"`
}

type containerView struct {
	Name     string `json:"name"`
	ID       string `json:"id"`
	Image    string `json:"image"`
	State    string `json:"state"`
	Restarts uint32 `json:"restarts"`
}

// readPods asks a runtime for its sandboxes, by namespace and name.
func readPods(ctx context.Context, service cri.Runtime) ([]podView, error) {
	sandboxes, err := service.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	containers, err := service.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	pods := []podView{}
	for _, s := range sandboxes.GetItems() {
		m := s.GetMetadata()
		p := podView{
			Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUid(), SandboxID: s.Id,
			State: strings.TrimPrefix(s.State.String(), "SANDBOX_"), IPs: []string{}, Created: time.Unix(0, s.CreatedAt), Containers: []containerView{},
		}
		status, err := service.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.Id})
		if err != nil && errdefs.IsNotFound(errgrpc.ToNative(err)) {
			continue // it has just been removed
		}
		if err != nil {
			return nil, err
		}
		if ip := status.GetStatus().GetNetwork().GetIp(); ip != "" {
			p.IPs = append(p.IPs, ip)
		}
		for _, ip := range status.GetStatus().GetNetwork().GetAdditionalIps() {
			p.IPs = append(p.IPs, ip.GetIp())
		}
		for _, c := range containers.GetContainers() {
			if c.PodSandboxId == s.Id {
				p.Containers = append(p.Containers, containerView{
					Name: c.GetMetadata().GetName(), ID: c.Id, Image: cmp.Or(c.GetImage().GetUserSpecifiedImage(), c.GetImage().GetImage()),
					State: strings.TrimPrefix(c.State.String(), "CONTAINER_"), Restarts: c.GetMetadata().GetAttempt(),
				})
			}
		}
		pods = append(pods, p)
	}
	slices.SortFunc(pods, func(a, b podView) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), b.Created.Compare(a.Created))
	})
	return pods, nil
}

func newPs(g *global) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List the pods of the running node",
		Long:  `List the pods of the running node (a serve, or a play in another terminal).`,
		Example: `  unipod ps
  unipod ps -o json | jq -r '.[] | .name + " " + .ips[0]'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			n, err := g.connectNode(ctx)
			if err != nil {
				return err
			}
			defer n.Close(ctx)
			pods, err := readPods(ctx, n.CRI())
			if err != nil {
				return err
			}
			return write(cmd.OutOrStdout(), format, pods, func(w io.Writer) error { return table(w, psHeader, psRows(pods)) })
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

var psHeader = []string{"NAMESPACE", "NAME", "RUNNING", "STATE", "RESTARTS", "IP", "AGE"}

func psRows(pods []podView) [][]string {
	var rows [][]string
	for _, p := range pods {
		running, restarts := 0, uint32(0)
		names := map[string]bool{}
		for _, c := range p.Containers {
			names[c.Name] = true
			restarts = max(restarts, c.Restarts)
			if c.State == "RUNNING" {
				running++
			}
		}
		ip := "<none>"
		if len(p.IPs) > 0 {
			ip = p.IPs[0]
		}
		state := "Ready"
		if p.State != "READY" {
			state = "NotReady"
		}
		rows = append(rows, []string{p.Namespace, p.Name, fmt.Sprintf("%d/%d", running, len(names)), state, fmt.Sprint(restarts), ip, age(p.Created)})
	}
	return rows
}
