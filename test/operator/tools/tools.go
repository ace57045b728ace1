//go:build tools

// Package tools pins the programs by others that test/operator runs against
// unipod's API. It is a module of its own: what they are built from is none of
// unipod's business.
package tools

import (
	_ "helm.sh/helm/v3/cmd/helm"
	_ "k8s.io/sample-controller"
)
