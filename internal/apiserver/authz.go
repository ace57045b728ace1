package apiserver

import (
	"fmt"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/authorization/path"
	"k8s.io/apiserver/pkg/authorization/union"
	"k8s.io/client-go/informers"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac"
)

// healthPaths are where anybody may ask whether the server is well, whatever
// roles there are.
var healthPaths = []string{"/healthz", "/livez", "/readyz"}

// authorization is RBAC, after system:masters, who may do everything.
func authorization(shared informers.SharedInformerFactory) (authorizer.Authorizer, authorizer.RuleResolver, error) {
	i := shared.Rbac().V1()
	roles := rbac.New(
		&rbac.RoleGetter{Lister: i.Roles().Lister()},
		&rbac.RoleBindingLister{Lister: i.RoleBindings().Lister()},
		&rbac.ClusterRoleGetter{Lister: i.ClusterRoles().Lister()},
		&rbac.ClusterRoleBindingLister{Lister: i.ClusterRoleBindings().Lister()},
	)
	health, err := path.NewAuthorizer(healthPaths)
	if err != nil {
		return nil, nil, fmt.Errorf("authorization: %w", err)
	}
	authz, err := union.New(
		union.NamedAuthorizer{AuthorizerName: "health", Authorizer: health},
		union.NamedAuthorizer{AuthorizerName: "masters", Authorizer: authorizerfactory.NewPrivilegedGroups(user.SystemPrivilegedGroup)},
		union.NamedAuthorizer{AuthorizerName: "rbac", Authorizer: roles},
	)
	if err != nil {
		return nil, nil, fmt.Errorf("authorization: %w", err)
	}
	return authz, union.NewRuleResolvers(roles), nil
}
