package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	// maxDocument is the API server's limit of a request's body, in bytes.
	maxDocument = 3 << 20
	// maxFile bounds one file or stream of documents, in bytes.
	maxFile = 64 << 20
	// maxDocuments bounds the documents of one file.
	maxDocuments = 10000
)

// source is a file that was read, or could not be.
type source struct {
	name string
	text []byte
	err  error
}

// document is one YAML or JSON document of a file.
type document struct {
	Place // Line is its first line
	text  []byte
}

// lineOf is the line of the file that line n of the document is, the first if
// n is 0. A YAML library may count other line breaks than \n, or point behind
// the end.
func (d document) lineOf(n int) int {
	last := bytes.Count(bytes.TrimRight(d.text, "\n"), []byte("\n")) + 1
	return d.Line + max(min(n, last), 1) - 1
}

// readFiles reads what the paths name, in order.
func readFiles(paths []string, stdin io.Reader) []source {
	var files []source
	for _, p := range paths {
		if p == "-" {
			files = append(files, readStdin(stdin))
			continue
		}
		info, err := os.Stat(p)
		if err != nil {
			files = append(files, source{name: p, err: err})
			continue
		}
		names := []string{p}
		if info.IsDir() {
			if names, err = manifestsIn(p); err != nil {
				files = append(files, source{name: p, err: err})
			}
		}
		for _, name := range names {
			files = append(files, readFile(name))
		}
	}
	return files
}

func readStdin(stdin io.Reader) source {
	if stdin == nil {
		return source{name: "-", err: fmt.Errorf("there is no standard input: %w", errdefs.ErrInvalidArgument)}
	}
	return read("-", stdin)
}

func readFile(name string) source {
	f, err := os.Open(name)
	if err != nil {
		return source{name: name, err: err}
	}
	defer f.Close()
	return read(name, f)
}

func read(name string, r io.Reader) source {
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err == nil && len(text) > maxFile {
		text, err = nil, fmt.Errorf("larger than %d MiB: %w", maxFile>>20, errdefs.ErrInvalidArgument)
	}
	return source{name, text, err}
}

// reason is an error's text without the path, which the place gives already.
func reason(err error) string {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Op + ": " + pe.Err.Error()
	}
	return err.Error()
}

// manifestsIn lists the manifests of a directory, sorted. Hidden files are
// those of editors and of kubelet's volume writer; they don't count.
func manifestsIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
			continue
		}
		path := filepath.Join(dir, name)
		// A link to a file counts; a pipe would never end.
		if info, err := os.Stat(path); err != nil || info.Mode().IsRegular() {
			names = append(names, path)
		}
	}
	return names, nil
}

// split cuts a file into documents: at YAML's "---" and "..." lines, and
// between JSON values. Documents without content don't count. Of a file with
// more than maxDocuments, it returns one more than that.
func split(f source) []document {
	var documents []document
	add := func(line int, text []byte) {
		if blank(text) || len(documents) > maxDocuments {
			return
		}
		for _, part := range splitJSON(line, text) {
			part.File, part.Document = f.name, len(documents)+1
			documents = append(documents, part)
		}
	}
	first, start, line := 1, 0, 1
	for pos := 0; pos < len(f.text); line++ {
		end := len(f.text)
		if i := bytes.IndexByte(f.text[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		if marker := f.text[pos:end]; isMarker(marker, "---") || isMarker(marker, "...") {
			add(first, f.text[start:pos])
			// What follows the marker on its line belongs to the document.
			first, start = line, pos+3
		}
		pos = end
	}
	add(first, f.text[start:])
	return documents
}

func isMarker(line []byte, marker string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(marker))
	return ok && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

// blank says whether the text holds nothing but comments and directives.
func blank(text []byte) bool {
	for line := range bytes.Lines(bytes.TrimPrefix(text, []byte("\ufeff"))) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && line[0] != '%' {
			return false
		}
	}
	return true
}

// splitJSON cuts a text that is a sequence of JSON objects into them; any other
// text (YAML, which may begin with a brace too) stays whole.
func splitJSON(line int, text []byte) []document {
	whole := []document{{Place: Place{Line: line}, text: text}}
	if t := bytes.TrimSpace(text); len(t) == 0 || t[0] != '{' {
		return whole
	}
	var parts []document
	decoder := json.NewDecoder(bytes.NewReader(text))
	for {
		from := decoder.InputOffset()
		var raw json.RawMessage
		err := decoder.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return parts
		}
		if err != nil {
			return whole
		}
		// The value may start some lines after the one before it ended.
		at := int(decoder.InputOffset()) - len(raw)
		parts = append(parts, document{Place: Place{Line: line + bytes.Count(text[:max(at, int(from))], []byte("\n"))}, text: raw})
	}
}
