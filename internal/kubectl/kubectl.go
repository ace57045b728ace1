// Package kubectl is kubectl inside unipod: upstream's own commands, unchanged,
// pointed at the node of this machine. It owns which of them are commands of
// unipod, where they find the node, and the words for when there is none.
//
// The commands are built when one is run, and not before: the list of them
// ([Verbs]) is a table. They end the process themselves when they fail, with
// kubectl's words and exit codes; so [Run] is called last.
//
// Floor: 10, a face of the API. It knows the node by its kubeconfig only.
package kubectl

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	_ "early.unipod.dev" // see there: kubectl's translations cost every command 10 ms
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // what other clusters' kubeconfigs may ask for
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/plugin"
	"k8s.io/kubectl/pkg/cmd/util"
)

// Config is one call of kubectl.
type Config struct {
	// Args are what follows the program's name.
	Args []string
	// Run is the node's directory with its kubeconfig, unless the arguments
	// name another (--run).
	Run string
	// Plain is `unipod kubectl`: it takes $KUBECONFIG and plugins as kubectl
	// does. Otherwise a command means this node, whatever the environment says.
	Plain bool
}

// KubeconfigName is the name of the node's kubeconfig below Run.
const KubeconfigName = "kubeconfig"

// criSocket is the CRI's below Run: a node that answers there lives.
const criSocket = "cri.sock"

// Run carries a command out on standard input and output. It doesn't return
// when the command fails.
func Run(c Config) {
	// The environment is how every part of kubectl finds its kubeconfig, the
	// config commands and plugins included.
	theirs, set := os.LookupEnv("KUBECONFIG")
	ours := !c.Plain || theirs == ""
	useNode := func(run string) error { return os.Setenv("KUBECONFIG", filepath.Join(run, KubeconfigName)) }
	if ours {
		util.CheckErr(useNode(c.Run))
	}
	_, _ = logs.GlogSetter(cmd.GetLogVerbosity(c.Args)) // before flags are parsed, as kubectl does
	root := tree(c)
	run := root.PersistentFlags().String("run", c.Run, "directory of the running node")
	// Taken everywhere, so that they can be exported or aliased; only run
	// matters to a client.
	root.PersistentFlags().String("root", "", "directory of what survives a reboot")
	util.CheckErr(errors.Join(root.PersistentFlags().MarkHidden("run"), root.PersistentFlags().MarkHidden("root")))
	before := root.PersistentPreRunE
	root.PersistentPreRunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case !ours:
		case elsewhere(cmd.Flags()):
			// Another cluster is meant: kubectl's own rules find it.
			if !set {
				util.CheckErr(os.Unsetenv("KUBECONFIG"))
			} else {
				util.CheckErr(os.Setenv("KUBECONFIG", theirs))
			}
		default:
			util.CheckErr(useNode(*run))
			if !offline(cmd) {
				if err := alive(*run); err != nil {
					return err
				}
			}
		}
		return before(cmd, args)
	}
	root.SetArgs(c.Args)
	util.CheckErr(cli.RunNoErrOutput(root))
}

// tree builds kubectl's commands under our name.
func tree(c Config) *cobra.Command {
	streams := genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
	o := cmd.KubectlOptions{
		Arguments: append([]string{"kubectl"}, c.Args...),
		ConfigFlags: genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().
			WithDiscoveryBurst(300).WithDiscoveryQPS(50).WithWarningPrinter(streams),
		IOStreams: streams,
	}
	name := "unipod"
	if c.Plain {
		name = "unipod kubectl"
		o.PluginHandler = cmd.NewDefaultPluginHandler(plugin.ValidPluginFilenamePrefixes)
	}
	root := cmd.NewDefaultKubectlCommandWithArgs(o)
	root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: name}
	teach(root, name)
	return root
}

// kubectlCommand is kubectl's name where an example calls it.
var kubectlCommand = regexp.MustCompile(`(?m)^(\s*|.*\| *)kubectl `)

// teach makes the examples ones that can be typed.
func teach(cmd *cobra.Command, name string) {
	cmd.Example = kubectlCommand.ReplaceAllString(cmd.Example, "${1}"+name+" ")
	for _, c := range cmd.Commands() {
		teach(c, name)
	}
}

// elsewhere tells whether the flags name a cluster.
func elsewhere(flags *pflag.FlagSet) bool {
	return slices.ContainsFunc([]string{"kubeconfig", "context", "cluster", "server"}, flags.Changed)
}

// offline tells whether a command does without the API.
func offline(cmd *cobra.Command) bool {
	for c := cmd; c.HasParent(); c = c.Parent() {
		if !c.Parent().HasParent() && slices.Contains([]string{"config", "kustomize", "options", "plugin", "completion", "help", "kuberc"}, c.Name()) {
			return true
		}
	}
	given := func(flag, value string) bool {
		f := cmd.Flags().Lookup(flag)
		return f != nil && f.Value.String() == value
	}
	// A command that only has others below it prints its help.
	menu := cmd.HasSubCommands() && cmd.Flags().NArg() == 0 && !cmd.Flags().Changed("filename") && !cmd.Flags().Changed("kustomize")
	return menu || strings.HasPrefix(cmd.Name(), cobra.ShellCompRequestCmd) || given("dry-run", "client") || given("local", "true") || given("client", "true")
}

// alive is an error that says what to do when no node runs, or when it is
// another user's.
func alive(run string) error {
	if _, err := os.Stat(filepath.Join(run, KubeconfigName)); errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("the node's kubeconfig in %s is for root: run this as root, or let root make you one (unipod kubeconfig) and pass it by --kubeconfig", run)
	}
	cfg, err := clientcmd.LoadFromFile(filepath.Join(run, KubeconfigName))
	if err != nil {
		if c, derr := net.Dial("unix", filepath.Join(run, criSocket)); derr == nil {
			c.Close()
			return fmt.Errorf("the node in %s has no Kubernetes API: it was started for the CRI only, or isn't ready yet", run)
		}
		return NoNode(run)
	}
	for _, cluster := range cfg.Clusters {
		u, err := url.Parse(cluster.Server)
		if err != nil {
			return fmt.Errorf("the node's kubeconfig: %w", err)
		}
		// A kubeconfig outlives a node that was killed.
		c, err := net.DialTimeout("tcp", u.Host, 5*time.Second)
		if errors.Is(err, unix.ECONNREFUSED) {
			return NoNode(run)
		}
		if err == nil {
			c.Close()
		}
	}
	return nil
}

// NoNode is the error of a command that needs a node.
func NoNode(run string) error {
	return fmt.Errorf("no node runs in %s: start one with `unipod serve`, or with `unipod play FILE` for as long as its pods live", run)
}
