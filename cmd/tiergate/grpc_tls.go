package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"

	"github.com/tiergate/tiergate/internal/config"
)

// A listenerTLS secures the gRPC listener. What it shows and whom it serves can be
// changed while it serves; whether it does, and whether it asks clients for
// certificates, cannot.
type listenerTLS struct {
	start   config.Listener
	current atomic.Pointer[tls.Config]
	log     *slog.Logger
	refused prometheus.Counter
	expires prometheus.Gauge
}

// newListenerTLS returns nil where the listener has no certificate.
func newListenerTLS(start config.Listener, c config.TLS, m *metrics, log *slog.Logger) *listenerTLS {
	t := &listenerTLS{
		start: start, log: log,
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tiergate_tls_handshakes_refused_total", Help: "TLS handshakes of the gRPC listener that failed on either side.",
		}),
		expires: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tiergate_tls_certificate_expiry_timestamp_seconds", Help: "When the certificate of the gRPC listener ends, or one between it and its root, Unix seconds.",
		}),
	}
	m.registry.MustRegister(t.refused, t.expires)
	if !start.TLS {
		return nil
	}
	t.use(c)
	return t
}

// use takes up other certificates, roots and names for new connections. It keeps what
// it has of those that only a restart can give or take away: it never serves with less.
func (t *listenerTLS) use(c config.TLS) {
	if t == nil || c.Certificate == nil {
		return
	}
	next := &tls.Config{
		Certificates: []tls.Certificate{*c.Certificate}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"},
		// Each connection shows that it may be there: a session that is resumed would not.
		SessionTicketsDisabled: true,
	}
	former := t.current.Load()
	switch {
	case t.start.ClientCerts && c.Roots != nil:
		next.ClientAuth, next.ClientCAs = tls.RequireAndVerifyClientCert, c.Roots
		next.VerifyConnection = allowOnly(c.Names)
	case t.start.ClientCerts && former != nil:
		next.ClientAuth, next.ClientCAs, next.VerifyConnection = former.ClientAuth, former.ClientCAs, former.VerifyConnection
	case t.start.ClientCerts: // the configuration has been checked: there are roots at a start
		return
	}
	t.current.Store(next)
	t.expires.Set(float64(ends(c.Certificate).Unix()))
}

// ends returns when a certificate, or one between it and its root, is not accepted any more.
func ends(c *tls.Certificate) time.Time {
	return slices.MinFunc(config.Chain(c), func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) }).NotAfter
}

// allowOnly refuses clients whose certificate has none of the names; none named means
// all.
func allowOnly(names []string) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 { // ClientAuth sees to it
			return errors.New("the client shows no certificate")
		}
		leaf := state.PeerCertificates[0]
		if len(names) == 0 || slices.ContainsFunc(names, func(name string) bool { return called(leaf, name) }) {
			return nil
		}
		return fmt.Errorf("the client %.200q is none of grpc.tls.client_names", callsItself(leaf))
	}
}

// called reports whether a certificate has a name. One that is a URI is looked for among
// its URIs alone: those, and not what else it calls itself, are what a SPIFFE ID is vouched
// for by.
func called(c *x509.Certificate, name string) bool {
	for _, uri := range c.URIs {
		if uri.String() == name {
			return true
		}
	}
	if strings.Contains(name, "://") {
		return false
	}
	return c.Subject.CommonName == name || slices.ContainsFunc(c.DNSNames, func(dns string) bool { return strings.EqualFold(dns, name) })
}

// callsItself lists the names of a certificate.
func callsItself(c *x509.Certificate) string {
	var names []string
	for _, uri := range c.URIs {
		names = append(names, uri.String())
	}
	return strings.Join(append(append(names, c.DNSNames...), c.Subject.CommonName), ", ")
}

// credentials are what the gRPC server secures its connections by.
func (t *listenerTLS) credentials() credentials.TransportCredentials {
	return &watchedHandshakes{TransportCredentials: credentials.NewTLS(&tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return t.current.Load(), nil },
	}), tls: t, seldom: rate.NewLimiter(1.0/10, 3)}
}

// watchedHandshakes count handshakes that fail, and say why, though not of each: three
// at once, then one in ten seconds.
type watchedHandshakes struct {
	credentials.TransportCredentials

	tls    *listenerTLS
	seldom *rate.Limiter
}

// ServerHandshake implements credentials.TransportCredentials. Whoever connects and says
// nothing, as probes of the port do, is no handshake.
func (w *watchedHandshakes) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := w.TransportCredentials.ServerHandshake(raw)
	if err != nil && !errors.Is(err, io.EOF) {
		w.tls.refused.Inc()
		if w.seldom.Allow() {
			w.tls.log.Warn("a TLS handshake failed", "client", raw.RemoteAddr().String(), "error", whoseCertificate(err))
		}
	}
	return conn, info, err
}

// whoseCertificate adds to an alert of the client about a certificate that ours is meant.
func whoseCertificate(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" && strings.Contains(op.Error(), "certificate") {
		return fmt.Errorf("%w: the client does not accept the certificate of grpc.tls.cert_file: see whether it has expired, whether its names are those that the client wants, and which roots it has", err)
	}
	return err
}

// Clone implements credentials.TransportCredentials.
func (w *watchedHandshakes) Clone() credentials.TransportCredentials {
	return &watchedHandshakes{TransportCredentials: w.TransportCredentials.Clone(), tls: w.tls, seldom: w.seldom}
}
