package manifest

import (
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/kubernetes/pkg/capabilities"
	"k8s.io/kubernetes/pkg/features"
)

// Alpha features of Kubernetes that unipod carries out: without its gate a
// field would be dropped before validation. And privileged containers, which
// validation forbids unless told otherwise: who may write manifests is root.
func init() {
	capabilities.Setup(true, 0)
	err := utilfeature.DefaultMutableFeatureGate.SetFromMap(map[string]bool{
		string(features.ContainerStopSignals): true,
	})
	if err != nil {
		// Only a name that this version of Kubernetes doesn't know.
		panic(err)
	}
}
