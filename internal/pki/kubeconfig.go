package pki

import (
	"fmt"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// ContextName names the context, the cluster and the user of a kubeconfig.
const ContextName = "unipod"

// Kubeconfig is the configuration of a client of the API at server, a URL,
// with the certificate that is valid now. It holds everything: no file of ours
// has to stay where it is.
func (a *Authority) Kubeconfig(server string, c *Certificate) (*clientcmdapi.Config, error) {
	cert, key, err := c.PEM()
	if err != nil {
		return nil, err
	}
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters[ContextName] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: a.CABundlePEM()}
	cfg.AuthInfos[ContextName] = &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	cfg.Contexts[ContextName] = &clientcmdapi.Context{Cluster: ContextName, AuthInfo: ContextName, Namespace: "default"}
	cfg.CurrentContext = ContextName
	return cfg, nil
}

// WriteKubeconfig replaces the file at path, see [WriteFile].
func WriteKubeconfig(path string, cfg *clientcmdapi.Config) error {
	text, err := clientcmd.Write(*cfg)
	if err == nil {
		err = WriteFile(path, text)
	}
	if err != nil {
		return fmt.Errorf("writing the kubeconfig %s: %w", path, err)
	}
	return nil
}
