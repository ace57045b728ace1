package apiserver

import (
	"fmt"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/authorization/union"
	"k8s.io/client-go/informers"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac"
)

// authorization is RBAC, after system:masters, who may do everything.
func authorization(shared informers.SharedInformerFactory) (authorizer.Authorizer, authorizer.RuleResolver, error) {
	i := shared.Rbac().V1()
	roles := rbac.New(
		&rbac.RoleGetter{Lister: i.Roles().Lister()},
		&rbac.RoleBindingLister{Lister: i.RoleBindings().Lister()},
		&rbac.ClusterRoleGetter{Lister: i.ClusterRoles().Lister()},
		&rbac.ClusterRoleBindingLister{Lister: i.ClusterRoleBindings().Lister()},
	)
	authz, err := union.New(
		union.NamedAuthorizer{AuthorizerName: "masters", Authorizer: authorizerfactory.NewPrivilegedGroups(user.SystemPrivilegedGroup)},
		union.NamedAuthorizer{AuthorizerName: "rbac", Authorizer: roles},
	)
	if err != nil {
		return nil, nil, fmt.Errorf("authorization: %w", err)
	}
	return authz, union.NewRuleResolvers(roles), nil
}
