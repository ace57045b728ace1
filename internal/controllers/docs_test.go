package controllers

import (
	"fmt"
	"strings"
	"testing"

	"unipod.dev/unipod/test/golden"
)

func table(used bool) string {
	var b strings.Builder
	b.WriteString("| controller | why |\n|---|---|\n")
	for _, c := range All {
		if (c.build != nil) == used {
			name := c.Name
			if c.late {
				name += " *"
			}
			fmt.Fprintf(&b, "| %s | %s |\n", name, c.Why)
		}
	}
	return b.String()
}

// The document tells what the table says.
func TestDocument(t *testing.T) {
	golden.Check(t, "../../docs/controllers.md", `# Controllers

unipod runs the controllers of kube-controller-manager v1.37, upstream's code unchanged, in the node's process. This is
every one there is. (The list is `+"`internal/controllers/table.go`"+`; a test compares it with upstream's, and this page with it.)

## Used

`+table(true)+`
\* made when its first object is there (an autoscaler, a quota, a claim, …): idle ones would be a tenth of the node's memory.

## Not used

`+table(false)+`
## What differs from a cluster

- They are one client of the API, `+"`kube-controller-manager`"+`, who may do everything.
- Few workers each: a call to the API is a function call, and takes a millisecond.
- Pods that have ended are kept up to 1,000 (12,500 in a cluster); claims without a volume are tried every 2 s (15 s).
- The garbage collector and quotas learn of new kinds of objects by watching CustomResourceDefinitions instead of asking
  for all resources twice a minute: an object of a kind made this second can be deleted in the foreground. What watches
  a kind that is gone waits for it to be back, and asks nobody meanwhile.
- Errors that upstream's code mends by itself (conflicts, a cache that is a moment old) are logged at debug, others at
  warning.

## Volumes on demand

A node that has no StorageClass gets one, `+"`standard`"+`, the default: a claim of it is bound at once to a directory below
`+"`volumes`"+` of the node's root, which is removed with the claim. Capacity is what was asked for and isn't limited. Who
wants something else makes a class of their own the default, or installs a provisioner. In a node that keeps its objects
in memory the directories end with it, at the next start.

## The scheduler

It is upstream's too, with its default plugins: there is one node to choose, but every reason to refuse it is Kubernetes'
(selectors, affinity, taints, resources, host ports, spread, volumes, gates, preemption by priority), told in its words by
the pod's condition and a FailedScheduling event. Pods that have ended take no room.
`)
}
