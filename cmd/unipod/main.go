// Command unipod runs Kubernetes Pods on one Linux machine.
package main

import (
	"os"

	"unipod.dev/unipod/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
