package apiserver

import (
	"fmt"

	"golang.org/x/sync/errgroup"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"

	"unipod.dev/unipod/internal/apiserver/inproc"
)

// rolesAtOnce is how many roles are written at once: the store makes several
// durable together.
const rolesAtOnce = 8

// defaultRoles makes upstream's roles and bindings, and adds to those there
// are what this release gives them. Like upstream's it leaves alone what is
// annotated not to be reconciled. Upstream's own polls for half a minute,
// whoever has stopped meanwhile, and asks the API for each of some 180: here
// the authorizer has read them all.
func (s *Server) defaultRoles() error {
	rbac, namespaces, known := s.client.RbacV1(), s.client.CoreV1().Namespaces(), s.shared.Rbac().V1()
	clusterRoles, clusterBindings := known.ClusterRoles().Lister(), known.ClusterRoleBindings().Lister()
	roles, bindings := known.Roles().Lister(), known.RoleBindings().Lister()
	inCluster := knownRoles{reconciliation.ClusterRoleModifier{Client: rbac.ClusterRoles()}, func(_, name string) (reconciliation.RuleOwner, error) {
		r, err := clusterRoles.Get(name)
		return reconciliation.ClusterRoleRuleOwner{ClusterRole: r.DeepCopy()}, err
	}}
	inNamespace := knownRoles{reconciliation.RoleModifier{Client: rbac, NamespaceClient: namespaces}, func(namespace, name string) (reconciliation.RuleOwner, error) {
		r, err := roles.Roles(namespace).Get(name)
		return reconciliation.RoleRuleOwner{Role: r.DeepCopy()}, err
	}}
	boundInCluster := knownBindings{reconciliation.ClusterRoleBindingClientAdapter{Client: rbac.ClusterRoleBindings()}, func(_, name string) (reconciliation.RoleBinding, error) {
		b, err := clusterBindings.Get(name)
		return reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: b.DeepCopy()}, err
	}}
	boundInNamespace := knownBindings{reconciliation.RoleBindingClientAdapter{Client: rbac, NamespaceClient: namespaces}, func(namespace, name string) (reconciliation.RoleBinding, error) {
		b, err := bindings.RoleBindings(namespace).Get(name)
		return reconciliation.RoleBindingAdapter{RoleBinding: b.DeepCopy()}, err
	}}

	var group errgroup.Group
	group.SetLimit(rolesAtOnce)
	reconcile := func(what, name string, run func() error) {
		group.Go(func() error {
			if s.stopping.Err() != nil {
				return inproc.ErrStopped
			}
			if err := run(); err != nil {
				return fmt.Errorf("%s %s: %w", what, name, err)
			}
			return nil
		})
	}
	role := func(r reconciliation.RuleOwner, m reconciliation.RuleOwnerModifier) {
		reconcile("role", r.GetName(), func() error {
			_, err := (&reconciliation.ReconcileRoleOptions{Role: r, Client: m, Confirm: true}).Run()
			return err
		})
	}
	binding := func(b reconciliation.RoleBinding, m reconciliation.RoleBindingModifier) {
		reconcile("role binding", b.GetName(), func() error {
			_, err := (&reconciliation.ReconcileRoleBindingOptions{RoleBinding: b, Client: m, Confirm: true}).Run()
			return err
		})
	}
	for _, r := range append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...) {
		role(reconciliation.ClusterRoleRuleOwner{ClusterRole: &r}, inCluster)
	}
	for _, b := range append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...) {
		binding(reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &b}, boundInCluster)
	}
	for _, of := range bootstrappolicy.NamespaceRoles() {
		for _, r := range of {
			role(reconciliation.RoleRuleOwner{Role: &r}, inNamespace)
		}
	}
	for _, of := range bootstrappolicy.NamespaceRoleBindings() {
		for _, b := range of {
			binding(reconciliation.RoleBindingAdapter{RoleBinding: &b}, boundInNamespace)
		}
	}
	return group.Wait()
}

// knownRoles reads what an informer has, and writes through the API. An
// informer's copy has no managed fields; an update without any keeps those
// there are.
type knownRoles struct {
	reconciliation.RuleOwnerModifier
	get func(namespace, name string) (reconciliation.RuleOwner, error)
}

// Get implements reconciliation.RuleOwnerModifier.
func (k knownRoles) Get(namespace, name string) (reconciliation.RuleOwner, error) {
	return k.get(namespace, name)
}

// knownBindings is the same for bindings.
type knownBindings struct {
	reconciliation.RoleBindingModifier
	get func(namespace, name string) (reconciliation.RoleBinding, error)
}

// Get implements reconciliation.RoleBindingModifier.
func (k knownBindings) Get(namespace, name string) (reconciliation.RoleBinding, error) {
	return k.get(namespace, name)
}
