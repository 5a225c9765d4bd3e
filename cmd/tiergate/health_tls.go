package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"os"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// A clientTLS says how a server is spoken to: in clear unless ca is set.
type clientTLS struct{ ca, cert, key, serverName string }

// flags adds what sets it.
func (c *clientTLS) flags(flags *flag.FlagSet) {
	flags.StringVar(&c.ca, "ca", "", "speak TLS: a PEM `file` with the roots that the server's certificate must lead to")
	flags.StringVar(&c.cert, "cert", "", "a PEM `file` with the certificate to show, where the server asks for one")
	flags.StringVar(&c.key, "key", "", "a PEM `file` with its private key")
	flags.StringVar(&c.serverName, "server-name", "", "the `name` that the server's certificate must have, if it is not that of the address")
}

// credentials reads the files.
func (c *clientTLS) credentials() (credentials.TransportCredentials, error) {
	if c.ca == "" {
		if c.cert != "" || c.key != "" || c.serverName != "" {
			return nil, usagef("--cert, --key and --server-name are of TLS: set --ca too")
		}
		return insecure.NewCredentials(), nil
	}
	if (c.cert == "") != (c.key == "") {
		return nil, usagef("a certificate is shown with its private key: set --cert and --key, or neither")
	}
	roots, err := readRoots("--ca", c.ca)
	if err != nil {
		return nil, err
	}
	t := &tls.Config{RootCAs: roots, ServerName: c.serverName, MinVersion: tls.VersionTLS12}
	if c.cert != "" {
		own, err := tls.LoadX509KeyPair(c.cert, c.key)
		if err != nil {
			return nil, fmt.Errorf("read --cert and --key: %w: want PEM files of a certificate and of its private key", err)
		}
		t.Certificates = []tls.Certificate{own}
	}
	return credentials.NewTLS(t), nil
}

// readRoots reads the roots that a server's certificate must lead to from the file that a flag or
// a setting names; nil: it names none, so they are the system's.
func readRoots(setting, file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil //nolint:nilnil // the system's
	}
	content, err := os.ReadFile(file) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", setting, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(content) {
		return nil, fmt.Errorf("read %s: file %s has no certificate: want PEM", setting, file)
	}
	return roots, nil
}

// advice says what to look at where the server cannot be asked. One that speaks TLS, or wants a
// certificate, may close the connection without a word.
func (c *clientTLS) advice(problem string) string {
	switch {
	case strings.Contains(problem, "failed to verify certificate"):
		return "see to the server's certificate, --ca and --server-name"
	case strings.Contains(problem, "connect: "):
		return "does tiergate serve there? (--address)"
	case c.ca == "":
		return "does tiergate serve there, in clear? (--address, --ca)"
	case c.cert == "":
		return "does tiergate serve there, by TLS, and want no certificate? (--address, --cert)"
	default:
		return "does tiergate serve there, by TLS, to clients with that certificate? (--address, --cert)"
	}
}
