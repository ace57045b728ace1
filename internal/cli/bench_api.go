package cli

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"unipod.dev/unipod/internal/bench/apibench"
)

func newBenchAPI(g *global) *cobra.Command {
	o := apibench.Options{Starts: 10, Idle: 40 * time.Second, Objects: 200, Parallel: 16, Pods: 30, Replicas: 50}
	var alone bool
	var format string
	cmd := &cobra.Command{
		Use:   "api",
		Short: "Measure the Kubernetes API and what is behind it",
		Long: `Measure a unipod serve of its own, started for it in directories of its own, as
clients over https meet it: start, memory, writes (each durable before it is
acknowledged), reads, watches, and the way from a pod's creation to its
containers. Beside it a kube-apiserver over etcd, where both are on PATH.`,
		Example: `  unipod bench api
  unipod bench api --alone --starts 5 -o json`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Starts < 1 || o.Objects < 1 || o.Parallel < 1 || o.Pods < 1 || o.Replicas < 1 {
				return usage("--starts, --objects, --parallel, --pods and --replicas must be at least 1")
			}
			if err := needRoot(); err != nil {
				return err
			}
			g.logging(cmd.ErrOrStderr(), slog.LevelError)
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			run, err := os.MkdirTemp("/run", "unipod-bench-api-")
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, os.RemoveAll(run)) }()
			self, err := os.Executable()
			if err != nil {
				return err
			}
			ours, err := apibench.Unipod(self, run)
			if err != nil {
				return err
			}
			servers := []apibench.Server{ours}
			if !alone {
				peer, err := apibench.Kube()
				if err != nil {
					return errors.Join(err, ours.Remove())
				}
				if peer == nil {
					fmt.Fprintln(cmd.ErrOrStderr(), "kube-apiserver and etcd are not both on PATH: measuring without them")
				} else {
					servers = append(servers, peer)
				}
			}
			report := &apibench.Report{When: time.Now(), Machine: machineWords(), Options: o}
			var failed error
			for _, s := range servers {
				fmt.Fprintln(cmd.ErrOrStderr(), "measuring", s.Name())
				figures, err := apibench.Measure(ctx, s, o)
				failed = errors.Join(failed, err)
				if figures != nil {
					report.Servers = append(report.Servers, figures)
				}
			}
			if len(report.Servers) == 0 {
				return failed
			}
			return errors.Join(failed, write(cmd.OutOrStdout(), format, report, func(w io.Writer) error { return report.Table(w) }))
		},
	}
	fl := cmd.Flags()
	fl.IntVar(&o.Starts, "starts", o.Starts, "times to start the server again")
	fl.DurationVar(&o.Idle, "idle", o.Idle, "how long to leave it alone before its memory is read")
	fl.IntVar(&o.Objects, "objects", o.Objects, "requests of each kind")
	fl.IntVar(&o.Parallel, "parallel", o.Parallel, "clients that write at the same time")
	fl.IntVar(&o.Pods, "pods", o.Pods, "pods to start one after another")
	fl.IntVar(&o.Replicas, "replicas", o.Replicas, "replicas of a Deployment")
	fl.BoolVar(&alone, "alone", false, "no peer, only unipod")
	outputFlag(cmd, &format)
	return cmd
}
