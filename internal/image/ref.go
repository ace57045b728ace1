package image

import (
	"fmt"
	"regexp"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// normalize reads a reference as Kubernetes does: a name without a registry
// is Docker Hub's, one without tag and digest is :latest, and of a tag and a
// digest the digest counts.
func normalize(ref string) (reference.Named, error) {
	n, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("couldn't parse image name %q: %v: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	return n, nil
}

var hexID = regexp.MustCompile(`^(sha256:)?[0-9a-f]{4,64}$`)
