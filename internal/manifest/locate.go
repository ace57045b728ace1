package manifest

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// locator finds the line of a field in a document's text. It parses when it is
// first asked: most documents have nothing wrong.
type locator struct {
	parsed bool
	root   *yaml.Node
}

// line is the line, from 1, where the field at path begins, or its nearest
// parent that is there; 0 if the text can't be parsed. Paths are those of
// Kubernetes' errors: a.b[0].c[key.with.dots].
func (l *locator) line(text []byte, path string) int {
	if !l.parsed {
		l.parsed = true
		var doc yaml.Node
		if yaml.Unmarshal(text, &doc) == nil && len(doc.Content) > 0 {
			l.root = doc.Content[0]
		}
	}
	if l.root == nil {
		return 0
	}
	node, line := l.root, l.root.Line
	for _, step := range steps(path) {
		for node.Kind == yaml.AliasNode {
			node = node.Alias
		}
		next, at := child(node, step)
		if next == nil {
			break
		}
		node, line = next, at
	}
	return line
}

// child is one step down: the value, and the line of its key.
func child(node *yaml.Node, step string) (*yaml.Node, int) {
	switch node.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(node.Content); i += 2 {
			if node.Content[i].Value == step {
				return node.Content[i+1], node.Content[i].Line
			}
		}
	case yaml.SequenceNode:
		if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(node.Content) {
			return node.Content[i], node.Content[i].Line
		}
	}
	return nil, 0
}

// steps splits a path at its dots and brackets.
func steps(path string) []string {
	var out []string
	for path != "" {
		if path[0] == '[' {
			key, rest, _ := strings.Cut(path[1:], "]")
			out = append(out, key)
			path = strings.TrimPrefix(rest, ".")
			continue
		}
		i := strings.IndexAny(path, ".[")
		if i < 0 {
			return append(out, path)
		}
		out = append(out, path[:i])
		path = strings.TrimPrefix(path[i:], ".")
	}
	return out
}
