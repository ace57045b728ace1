// Command guest is what the pods of the Service tests run: a server that says
// its name, a client that counts who answers, and a program that uses the
// Kubernetes API as any that runs in a cluster does. It is static, for images
// without libraries.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func main() {
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 1 && args[0] == "serve":
		err = serve()
	case len(args) == 3 && args[0] == "ask":
		err = ask(args[1], args[2], tcp)
	case len(args) == 3 && args[0] == "ask-udp":
		err = ask(args[1], args[2], udp)
	case len(args) == 1 && args[0] == "api":
		err = api()
	default:
		err = errors.New("serve | ask ADDRESS TIMES | ask-udp ADDRESS TIMES | api")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const notReady = "/tmp/not-ready"

// serve says its host name on port 8080, to each connection and each datagram,
// and whether it is ready on 8081. Told to end, it goes on for a moment, as
// servers do that clients may still be sent to.
func serve() error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":8080")
	if err != nil {
		return err
	}
	u, err := net.ListenPacket("udp", ":8080")
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, name)
			c.Close()
		}
	}()
	go func() {
		buf := make([]byte, 1500)
		for {
			_, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			u.WriteTo([]byte(name), from)
		}
	}()
	go http.ListenAndServe(":8081", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if _, err := os.Stat(notReady); err == nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	<-term
	time.Sleep(time.Second)
	return nil
}

func tcp(to string) (string, error) {
	c, err := net.DialTimeout("tcp", to, 10*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(c)
	return string(b), err
}

func udp(to string) (string, error) {
	c, err := net.Dial("udp", to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := c.Write([]byte("?")); err != nil {
		return "", err
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 1500)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// ask prints who answered, in order; TIMES may be a duration. The first that
// fails is the end.
func ask(to, times string, once func(string) (string, error)) error {
	n, err := strconv.Atoi(times)
	until := time.Time{}
	if err != nil {
		d, err := time.ParseDuration(times)
		if err != nil {
			return err
		}
		until = time.Now().Add(d)
	}
	var who []string
	for i := 0; i < n || time.Now().Before(until); i++ {
		name, err := once(to)
		if err != nil {
			return fmt.Errorf("connection %d to %s: %w", i, to, err)
		}
		if !slices.Contains(who, name) {
			who = append(who, name)
		}
	}
	slices.Sort(who)
	for _, name := range who {
		fmt.Println(name)
	}
	return nil
}

// api does what an operator does first: it finds the API, reads what its
// account may read, and is refused the rest.
func api() error {
	cfg, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	pods, err := client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	fmt.Println("at", cfg.Host, "pods:", len(pods.Items))
	if _, err := client.CoreV1().Secrets("default").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		return fmt.Errorf("Secrets were not refused: %v", err)
	}
	fmt.Println("secrets: refused")
	return nil
}
