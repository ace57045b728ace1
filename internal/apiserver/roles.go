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
// whoever has stopped meanwhile.
func (s *Server) defaultRoles() error {
	rbac, namespaces := s.client.RbacV1(), s.client.CoreV1().Namespaces()
	var group errgroup.Group
	group.SetLimit(rolesAtOnce)
	role := func(r reconciliation.RuleOwner, m reconciliation.RuleOwnerModifier) {
		group.Go(func() error {
			if s.stopping.Err() != nil {
				return inproc.ErrStopped
			}
			o := reconciliation.ReconcileRoleOptions{Role: r, Client: m, Confirm: true}
			if _, err := o.Run(); err != nil {
				return fmt.Errorf("role %s: %w", r.GetName(), err)
			}
			return nil
		})
	}
	binding := func(b reconciliation.RoleBinding, m reconciliation.RoleBindingModifier) {
		group.Go(func() error {
			if s.stopping.Err() != nil {
				return inproc.ErrStopped
			}
			o := reconciliation.ReconcileRoleBindingOptions{RoleBinding: b, Client: m, Confirm: true}
			if _, err := o.Run(); err != nil {
				return fmt.Errorf("role binding %s: %w", b.GetName(), err)
			}
			return nil
		})
	}
	for _, r := range append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...) {
		role(reconciliation.ClusterRoleRuleOwner{ClusterRole: &r}, reconciliation.ClusterRoleModifier{Client: rbac.ClusterRoles()})
	}
	for _, b := range append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...) {
		binding(reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &b}, reconciliation.ClusterRoleBindingClientAdapter{Client: rbac.ClusterRoleBindings()})
	}
	for _, roles := range bootstrappolicy.NamespaceRoles() {
		for _, r := range roles {
			role(reconciliation.RoleRuleOwner{Role: &r}, reconciliation.RoleModifier{Client: rbac, NamespaceClient: namespaces})
		}
	}
	for _, bindings := range bootstrappolicy.NamespaceRoleBindings() {
		for _, b := range bindings {
			binding(reconciliation.RoleBindingAdapter{RoleBinding: &b}, reconciliation.RoleBindingClientAdapter{Client: rbac, NamespaceClient: namespaces})
		}
	}
	return group.Wait()
}
