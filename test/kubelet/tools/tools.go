//go:build tools

// Package tools pins the kubelet that the runtime is tried under. It is a
// module of its own: what a kubelet is built from (cadvisor, CSI, a cloud's
// credentials) is none of unipod's business.
package tools

import _ "k8s.io/kubernetes/cmd/kubelet"
