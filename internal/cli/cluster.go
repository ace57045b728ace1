package cli

import (
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"unipod.dev/unipod/internal/cluster"
	"unipod.dev/unipod/internal/node"
)

// etcKubeconfig is where the administrator's kubeconfig of the machine's own
// node is looked for by other programs.
const etcKubeconfig = "/etc/unipod/kubeconfig"

// clusterFlags are those of the API and what is behind it.
type clusterFlags struct {
	api, services, labels []string
	kubelet               string
	auditPolicy, auditLog string
	ephemeral             bool
}

func (f *clusterFlags) add(fl *pflag.FlagSet) {
	fl.StringSliceVar(&f.api, "api-address", []string{cluster.DefaultAPI}, "addresses of the Kubernetes API; the first is in the kubeconfig, one that isn't loopback is what pods get")
	fl.StringVar(&f.kubelet, "kubelet-address", cluster.DefaultKubelet, "address of kubelet's HTTP: logs, streams, metrics")
	fl.StringSliceVar(&f.services, "service-cidr", nil, "networks of Services' addresses on a new node, one or one of each family; later ones are ServiceCIDR objects (default 10.67.0.0/16,fd75:6e69:706f:65::/112)")
	fl.StringSliceVar(&f.labels, "node-labels", nil, "labels (key=value) of the node when it is registered first")
	fl.StringVar(&f.auditPolicy, "audit-policy", "", "file with an audit.k8s.io Policy, by which requests are logged to --audit-log")
	fl.StringVar(&f.auditLog, "audit-log", "", "file of the audit log")
	fl.BoolVar(&f.ephemeral, "ephemeral", false, "keep the API's objects and keys in memory: they end with the process")
}

// complete puts what the flags say into cfg.
func (f *clusterFlags) complete(cfg *cluster.Config, g *global) error {
	cfg.Root, cfg.Run, cfg.Memory, cfg.API, cfg.Kubelet = g.root, g.run, f.ephemeral, f.api, f.kubelet
	if (f.auditPolicy == "") != (f.auditLog == "") {
		return usage("--audit-policy and --audit-log are given both or not at all")
	}
	cfg.AuditPolicy, cfg.AuditLog = f.auditPolicy, f.auditLog
	for _, s := range f.services {
		_, n, err := net.ParseCIDR(s)
		if err != nil {
			return usage("--service-cidr %q: %w", s, err)
		}
		cfg.Services = append(cfg.Services, n)
	}
	cfg.Labels = map[string]string{}
	for _, l := range f.labels {
		key, value, ok := strings.Cut(l, "=")
		if problems := append(validation.IsQualifiedName(key), validation.IsValidLabelValue(value)...); !ok || len(problems) > 0 {
			return usage("--node-labels %q: not a label (key=value) %s", l, strings.Join(problems, "; "))
		}
		cfg.Labels[key] = value
	}
	if filepath.Clean(g.root) == node.DefaultRoot {
		if err := os.MkdirAll(filepath.Dir(etcKubeconfig), 0o755); err != nil {
			return err
		}
		cfg.Kubeconfigs = []string{etcKubeconfig}
	}
	return nil
}
