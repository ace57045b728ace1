package recipe_test

import (
	"fmt"
	"testing"

	"unipod.dev/unipod/internal/recipe"
)

func TestHello(t *testing.T) {
	p := plainPod(t)
	root, _ := rootfs(t, nil)
	spec := p.spec(root, "echo hello; hostname; pwd; echo $$; cat /proc/mounts")
	fmt.Println(p.run(spec).out)
	_ = recipe.New
}
