package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
)

// listener checks what the gRPC listener is held to.
func (c *checker) listener(s grpcSection) (Listener, TLS) {
	mode, err := strconv.ParseUint(s.SocketMode, 8, 32)
	if err != nil || mode > 0o777 {
		c.fault("grpc.socket_mode", "%q: want permissions in octal, such as \"0660\"", s.SocketMode)
	}
	l := Listener{
		SocketMode:      os.FileMode(mode),
		TLS:             s.TLS.CertFile != "",
		ClientCerts:     s.TLS.ClientCAFile != "",
		MaxConnections:  c.number("grpc.max_connections", s.MaxConnections, 1, 1_000_000),
		MaxCalls:        c.number("grpc.max_calls", s.MaxCalls, 1, 1_000_000),
		MaxMessageBytes: c.number("grpc.max_message_bytes", s.MaxMessageBytes, 1<<10, 1<<30),
	}
	if l.ClientCerts && !l.TLS {
		c.fault("grpc.tls.client_ca_file", "there is no grpc.tls.cert_file: a listener in clear asks nobody for a certificate")
	}
	if len(s.TLS.ClientNames) > 0 && !l.ClientCerts {
		c.fault("grpc.tls.client_names", "there is no grpc.tls.client_ca_file: names are those of clients' certificates")
	}
	for i, n := range s.TLS.ClientNames {
		if n == "" {
			c.fault(fmt.Sprintf("grpc.tls.client_names[%d]", i), "empty: want the name of a client")
		}
	}
	return l, TLS{
		Certificate: c.certificate("grpc.tls", s.TLS.CertFile, s.TLS.KeyFile),
		Roots:       c.roots("grpc.tls.client_ca_file", s.TLS.ClientCAFile),
		Names:       s.TLS.ClientNames,
	}
}

// password reads one from a file or from the environment; the zero Key is none.
func (c *checker) password(at, file, env string) apikey.Key {
	password, err := c.loader.secret(file, env)
	if err != nil && file != "" {
		c.fault(at+".password_file", "%v", err)
	} else if err != nil {
		c.fault(at+".password_env", "%v", err)
	}
	return apikey.Redacting(password)
}

// certificate reads a certificate and its key.
func (c *checker) certificate(at, certFile, keyFile string) *tls.Certificate {
	switch {
	case certFile == "" && keyFile == "":
		return nil
	case certFile == "":
		c.fault(at+".cert_file", "empty: want the certificate of the key in key_file")
		return nil
	case keyFile == "":
		c.fault(at+".key_file", "empty: want the private key of the certificate in cert_file")
		return nil
	case c.loader.options.WithoutSecrets:
		return nil
	}
	certPEM, err := c.loader.readFile(c.loader.beside(certFile))
	if err != nil {
		c.fault(at+".cert_file", "%v", err)
	}
	keyPEM, keyErr := c.loader.readFile(c.loader.beside(keyFile))
	if keyErr != nil {
		c.fault(at+".key_file", "%v", keyErr)
	}
	if err != nil || keyErr != nil {
		return nil
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		c.fault(at+".cert_file", "%v: want PEM files of a certificate and of its private key", err)
		return nil
	}
	c.inTime(at+".cert_file", "the certificate in "+certFile, pair.Leaf)
	for _, between := range Chain(&pair)[1:] {
		c.inTime(at+".cert_file", fmt.Sprintf("the certificate of %q in %s", between.Subject, certFile), between)
	}
	return &pair
}

// Chain returns the certificates of a pair that was read, its own first, and then those between
// it and its root. What cannot be read of these is left out.
func Chain(c *tls.Certificate) []*x509.Certificate {
	chain := []*x509.Certificate{c.Leaf}
	for _, content := range c.Certificate[1:] {
		if between, err := x509.ParseCertificate(content); err == nil {
			chain = append(chain, between)
		}
	}
	return chain
}

// inTime warns of a certificate that nobody accepts now. It is used: it may be the clock that is
// wrong, and who serves goes on.
func (c *checker) inTime(at, which string, certificate *x509.Certificate) {
	if c.loader.options.Now == nil {
		return
	}
	switch now := c.loader.options.Now(); {
	case now.After(certificate.NotAfter):
		c.warn(at, "%s has expired, on %s: put a new one in its place", which, certificate.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(certificate.NotBefore):
		c.warn(at, "%s is not valid before %s: put another in its place, or set this machine's clock right", which, certificate.NotBefore.UTC().Format(time.RFC3339))
	}
}

// roots reads certificates that others must lead to; nil where no file is named.
func (c *checker) roots(at, file string) *x509.CertPool {
	if file == "" || c.loader.options.WithoutSecrets {
		return nil
	}
	content, err := c.loader.readFile(c.loader.beside(file))
	if err != nil {
		c.fault(at, "%v", err)
		return nil
	}
	pool, known, hold := x509.NewCertPool(), 0, 0
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil || block.Type != "CERTIFICATE" {
			continue
		}
		pool.AddCert(root)
		known++
		if now := c.loader.options.Now; now == nil || !now().After(root.NotAfter) && !now().Before(root.NotBefore) {
			hold++
		}
	}
	if known == 0 {
		c.fault(at, "file %s has no certificate: want PEM", file)
		return nil
	}
	if hold == 0 { // one that has expired may be left beside its successor
		c.warn(at, "no certificate in %s is valid now, so none that leads to them is accepted: put a new one beside them, or set this machine's clock right", file)
	}
	return pool
}

func (c *checker) tracing(s tracingSection) Tracing {
	t := Tracing{Endpoint: s.Endpoint, Insecure: s.Insecure}
	if s.Endpoint != "" {
		c.address("tracing.endpoint", s.Endpoint, false)
	}
	t.SampleRatio = c.share("tracing.sample_ratio", s.SampleRatio)
	if s.CAFile != "" {
		if s.Insecure {
			c.fault("tracing.ca_file", "there is insecure: true too: name one of the two")
		}
		c.roots("tracing.ca_file", s.CAFile)
		t.CAFile = c.loader.beside(s.CAFile)
	}
	return t
}

// identity reads what is believed of other filters.
func (c *checker) identity(s extAuthzSection) Identity {
	if s.Tier != "" && s.KeyID == "" {
		c.fault("ext_authz.tier", "a tier is believed only beside a key ID: set key_id too")
	}
	return Identity{KeyID: c.metadataPath("ext_authz.key_id", s.KeyID), Tier: c.metadataPath("ext_authz.tier", s.Tier)}
}

// metadataPath is a namespace, a colon, and names joined by dots.
var metadataPath = regexp.MustCompile(`^([A-Za-z0-9_.-]+):([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)$`)

func (c *checker) metadataPath(at, s string) MetadataPath {
	if s == "" {
		return MetadataPath{}
	}
	parts := metadataPath.FindStringSubmatch(s)
	if parts == nil {
		c.fault(at, "%q: want namespace:field, such as envoy.filters.http.jwt_authn:claims.sub", s)
		return MetadataPath{}
	}
	return MetadataPath{parts[1], strings.Split(parts[2], ".")}
}
