package apiserver

import (
	"context"
	"fmt"
	"time"

	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	"k8s.io/apimachinery/pkg/runtime"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/storage"
	api "k8s.io/kubernetes/pkg/apis/core"
)

const (
	// secretsAtOnce are how many are in memory while they are encrypted anew.
	secretsAtOnce = 100
	// encryptLater is how long it is left when it failed: a disk may be full.
	encryptLater = time.Minute
)

// encryptAnew is what follows a change of the key that encrypts Secrets: those
// of older keys are written again, what the log has of them is removed, and
// then the older keys are. Ended at any point, it begins anew at the next start
// and finds less to do: until the last step every key is there.
func (s *Server) encryptAnew(c Config) {
	for c.PKI.OldEncryptionKeys() > 0 {
		n, err := s.encryptSecrets(s.stopping)
		if err == nil {
			err = c.Store.Condense(s.stopping)
		}
		if err == nil {
			err = c.PKI.DropOldEncryptionKeys()
		}
		if err == nil {
			s.log.Info("all Secrets are encrypted by the newest key; older ones are dropped", "secrets", n)
			return
		}
		if s.stopping.Err() != nil {
			return
		}
		s.log.Error("not all Secrets are encrypted by the newest key yet; trying again, the older ones stay", "err", err)
		select {
		case <-s.stopping.Done():
			return
		case <-time.After(encryptLater):
		}
	}
}

// encryptSecrets writes every Secret that isn't encrypted by the newest key
// again, each as it is: no admission, no other field. It says how many there are.
func (s *Server) encryptSecrets(ctx context.Context) (n int, err error) {
	same := func(in runtime.Object, _ storage.ResponseMeta) (runtime.Object, *uint64, error) { return in, nil, nil }
	page := &metainternalversion.ListOptions{Limit: secretsAtOnce}
	for {
		obj, err := s.secrets.List(ctx, page)
		if err != nil {
			return n, fmt.Errorf("listing Secrets: %w", err)
		}
		list, ok := obj.(*api.SecretList)
		if !ok {
			return n, fmt.Errorf("listing Secrets: got %T", obj)
		}
		for i := range list.Items {
			secret := &list.Items[i]
			key, err := s.secrets.KeyFunc(genericapirequest.WithNamespace(ctx, secret.Namespace), secret.Name)
			if err == nil {
				// The store writes what doesn't change if it has to be encrypted anew.
				err = s.secrets.Storage.GuaranteedUpdate(ctx, key, &api.Secret{}, false, nil, same, false, nil)
			}
			if err != nil && !storage.IsNotFound(err) {
				return n, fmt.Errorf("the Secret %s/%s: %w", secret.Namespace, secret.Name, err)
			}
			n++
		}
		if page.Continue = list.Continue; page.Continue == "" {
			return n, nil
		}
	}
}
