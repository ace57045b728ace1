// Command server is what the scenarios' pods are asked by: it answers probes
// and hooks over http, https, plain TCP and gRPC, and fails them while a file
// exists. It is built into the scenarios' image.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

var (
	httpAddr  = flag.String("http", "", "address to serve http on")
	httpsAddr = flag.String("https", "", "address to serve https on, with a certificate nobody knows")
	tcpAddr   = flag.String("tcp", "", "address to accept connections on")
	grpcAddr  = flag.String("grpc", "", "address to serve grpc.health.v1 on")
	service   = flag.String("service", "", "the service that is healthy there")
	header    = flag.String("header", "", "header that requests must have")
	down      = flag.String("down", "/tmp/down", "file that makes everything fail while it exists")
	after     = flag.Duration("down-after", 0, "make that file after this time")
)

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func failing() bool {
	_, err := os.Stat(*down)
	return err == nil
}

type health struct {
	healthpb.UnimplementedHealthServer
}

func (health) Check(_ context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	switch {
	case r.Service != *service:
		return nil, status.Errorf(codes.NotFound, "no service %q", r.Service)
	case failing():
		return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_NOT_SERVING}, nil
	}
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

func answer(w http.ResponseWriter, r *http.Request) {
	value := r.Header.Get(*header)
	switch r.URL.Path {
	case "/start", "/stop": // hooks
		fmt.Printf("asked for %s, %s\n", r.URL.Path, value)
	case "/hold":
		time.Sleep(time.Second)
	}
	if failing() || *header != "" && value == "" {
		w.WriteHeader(http.StatusInternalServerError)
	}
}

func listen(addr string) net.Listener {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fatal(err)
	}
	return l
}

func accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil && failing() {
			return
		}
		if err != nil {
			fatal(err)
		}
		c.Close()
	}
}

func certificate() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func main() {
	flag.Parse()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	server := &http.Server{Handler: http.HandlerFunc(answer), ReadHeaderTimeout: time.Minute}
	if *httpAddr != "" {
		go func() { fatal(server.Serve(listen(*httpAddr))) }()
	}
	if *httpsAddr != "" {
		config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate()}}
		go func() { fatal(server.Serve(tls.NewListener(listen(*httpsAddr), config))) }()
	}
	if *tcpAddr != "" {
		l := listen(*tcpAddr)
		go accept(l)
		go func() { // a socket can't say that it is unwell: it is closed
			for !failing() {
				time.Sleep(50 * time.Millisecond)
			}
			l.Close()
		}()
	}
	if *grpcAddr != "" {
		s := grpc.NewServer()
		healthpb.RegisterHealthServer(s, health{})
		go func() { fatal(s.Serve(listen(*grpcAddr))) }()
	}
	if *after > 0 {
		time.AfterFunc(*after, func() {
			if err := os.WriteFile(*down, nil, 0o644); err != nil {
				fatal(err)
			}
		})
	}
	fmt.Println("serving")
	<-signals
	fmt.Println("asked to end")
}
