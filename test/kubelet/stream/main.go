// stream enters a container or a port through a kubelet's own port, as an API
// server does for kubectl:
//
//	stream exec spdy|websocket URL   (its input is the command's)
//	stream forward URL PORT          (its input goes to the port, its output is the answer)
//
// It promises the command's exit code as its own. No certificate is checked:
// a kubelet that is tried has signed its own. Floor: none; nothing imports it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
)

func main() {
	err := run(os.Args[1:])
	var code utilexec.CodeExitError
	if errors.As(err, &code) {
		os.Exit(code.Code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "stream:", err)
		os.Exit(125)
	}
}

func run(args []string) error {
	config := &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	switch {
	case len(args) == 3 && args[0] == "exec":
		return enter(config, args[1], args[2])
	case len(args) == 3 && args[0] == "forward":
		port, err := strconv.ParseUint(args[2], 10, 16)
		if err != nil {
			return err
		}
		return forward(config, args[1], port)
	}
	return errors.New("usage: exec spdy|websocket URL, or forward URL PORT")
}

func enter(config *rest.Config, protocol, address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	var e remotecommand.Executor
	switch protocol {
	case "spdy":
		e, err = remotecommand.NewSPDYExecutor(config, http.MethodPost, u)
	case "websocket":
		e, err = remotecommand.NewWebSocketExecutor(config, http.MethodGet, address)
	default:
		err = fmt.Errorf("protocol %q is neither spdy nor websocket", protocol)
	}
	if err != nil {
		return err
	}
	return e.StreamWithContext(context.Background(), remotecommand.StreamOptions{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
}

func forward(config *rest.Config, address string, port uint64) (err error) {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return err
	}
	conn, _, err := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u).Dial("portforward.k8s.io")
	if err != nil {
		return err
	}
	defer conn.Close()
	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.FormatUint(port, 10))
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	failures, err := conn.CreateStream(headers)
	if err != nil {
		return err
	}
	if err := failures.Close(); err != nil { // nothing is sent on it
		return err
	}
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := conn.CreateStream(headers)
	if err != nil {
		return err
	}
	if _, err := io.Copy(data, os.Stdin); err != nil {
		return err
	}
	if err := data.Close(); err != nil { // the port sees the end of input
		return err
	}
	if _, err := io.Copy(os.Stdout, data); err != nil {
		return err
	}
	message, err := io.ReadAll(failures)
	if err == nil && len(message) > 0 {
		err = errors.New(string(message))
	}
	return err
}
