package kubectl

// A Verb is a command of kubectl that is one of unipod.
type Verb struct {
	Name, Short string
}

// A Group is verbs that belong together, in the order of the help.
type Group struct {
	ID, Title string
	Verbs     []Verb
}

// Verbs are all of kubectl's commands but those that unipod has itself
// (version, completion) and those about kubectl (options, plugin, kuberc,
// alpha), which `unipod kubectl` has. A test compares them with kubectl's.
func Verbs() []Group {
	return []Group{
		{"look", "Look at the API's objects (kubectl's commands)", []Verb{
			{"get", "Display one or many resources"},
			{"describe", "Show details of a specific resource or group of resources"},
			{"explain", "Get documentation for a resource"},
			{"events", "List events"},
			{"top", "Display resource (CPU/memory) usage"},
			{"wait", "Wait for a specific condition on one or many resources"},
			{"diff", "Diff the live version against a would-be applied version"},
		}},
		{"change", "Change them (kubectl's commands)", []Verb{
			{"apply", "Apply a configuration to a resource by file name or stdin"},
			{"create", "Create a resource from a file or from stdin"},
			{"delete", "Delete resources by file names, stdin, resources and names, or by resources and label selector"},
			{"edit", "Edit a resource on the server"},
			{"patch", "Update fields of a resource"},
			{"replace", "Replace a resource by file name or stdin"},
			{"run", "Run a particular image on the cluster"},
			{"expose", "Take a replication controller, service, deployment or pod and expose it as a new Kubernetes service"},
			{"set", "Set specific features on objects"},
			{"label", "Update the labels on a resource"},
			{"annotate", "Update the annotations on a resource"},
			{"rollout", "Manage the rollout of a resource"},
			{"scale", "Set a new size for a deployment, replica set, or replication controller"},
			{"autoscale", "Auto-scale a deployment, replica set, stateful set, or replication controller"},
		}},
		{"inside", "Be inside a pod (kubectl's commands)", []Verb{
			{"logs", "Print the logs for a container in a pod"},
			{"exec", "Execute a command in a container"},
			{"attach", "Attach to a running container"},
			{"cp", "Copy files and directories to and from containers"},
			{"port-forward", "Forward one or more local ports to a pod"},
			{"debug", "Create debugging sessions for troubleshooting workloads and nodes"},
		}},
		{"cluster", "The node and its API (kubectl's commands)", []Verb{
			{"api-resources", "Print the supported API resources on the server"},
			{"api-versions", `Print the supported API versions on the server, in the form of "group/version"`},
			{"auth", "Inspect authorization"},
			{"certificate", "Modify certificate resources"},
			{"cluster-info", "Display cluster information"},
			{"config", "Modify kubeconfig files"},
			{"cordon", "Mark node as unschedulable"},
			{"uncordon", "Mark node as schedulable"},
			{"drain", "Drain node in preparation for maintenance"},
			{"taint", "Update the taints on one or more nodes"},
			{"kustomize", "Build a kustomization target from a directory or URL"},
			{"proxy", "Run a proxy to the Kubernetes API server"},
		}},
	}
}

// Has tells whether name is one of them.
func Has(name string) bool {
	for _, g := range Verbs() {
		for _, v := range g.Verbs {
			if v.Name == name {
				return true
			}
		}
	}
	return false
}
