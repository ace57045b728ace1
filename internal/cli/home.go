package cli

import (
	"fmt"
	"os/user"
	"strconv"
)

// homeOf is a user's home directory.
func homeOf(uid int) (string, error) {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return "", fmt.Errorf("the home of the user who called sudo: %w", err)
	}
	return u.HomeDir, nil
}
