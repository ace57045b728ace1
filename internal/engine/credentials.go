package engine

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubernetes/pkg/credentialprovider"
	"k8s.io/kubernetes/pkg/credentialprovider/secrets"
	"k8s.io/kubernetes/pkg/util/parsers"
)

// credentials are those of the pod's imagePullSecrets that fit the image, and
// the names of secrets that are missing. The runtime has the node's own.
func credentials(objects Objects, pod *v1.Pod, image string) (auths []*runtimeapi.AuthConfig, missing []string, err error) {
	if len(pod.Spec.ImagePullSecrets) == 0 {
		return nil, nil, nil
	}
	var found []v1.Secret
	for _, ref := range pod.Spec.ImagePullSecrets {
		if ref.Name == "" {
			continue
		}
		secret, err := objects.Secret(pod.Namespace, ref.Name)
		switch {
		case apierrors.IsNotFound(err):
			missing = append(missing, ref.Name)
		case err != nil:
			return nil, nil, fmt.Errorf("image pull secret %s: %w", ref.Name, err)
		default:
			found = append(found, *secret)
		}
	}
	keyring, err := secrets.MakeDockerKeyring(found, &credentialprovider.BasicDockerKeyring{})
	if err != nil {
		return nil, nil, fmt.Errorf("image pull secrets of pod %s: %w", pod.Name, err)
	}
	repository, _, _, err := parsers.ParseImageName(image)
	if err != nil {
		return nil, nil, err
	}
	fitting, _ := keyring.Lookup(repository)
	for _, f := range fitting {
		auths = append(auths, &runtimeapi.AuthConfig{
			Username: f.Username, Password: f.Password, Auth: f.Auth,
			ServerAddress: f.ServerAddress, IdentityToken: f.IdentityToken, RegistryToken: f.RegistryToken,
		})
	}
	return auths, missing, nil
}
