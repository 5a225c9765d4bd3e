package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/config"
	"github.com/tiergate/tiergate/internal/devstack"
)

// A secured is what a server with TLS is tested by.
type secured struct {
	*running

	authority *devstack.Authority
	dir       string // of server.pem, server.key, clients.pem and tiergate.yaml
}

// must returns a value that there has to be.
func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// startSecured serves by TLS to clients of an authority, with these settings of grpc.tls
// besides.
func startSecured(t *testing.T, settings string) *secured {
	t.Helper()
	s := &secured{authority: must[*devstack.Authority](t)(devstack.NewAuthority("ours")), dir: t.TempDir()}
	s.write(t, "clients.pem", s.authority.PEM())
	s.certify(t, "server")
	s.configure(t, settings)
	s.running = startServer(t, filepath.Join(s.dir, "tiergate.yaml"))
	return s
}

func (s *secured) write(t *testing.T, name string, content []byte) {
	t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// certify gives the server a new certificate.
func (s *secured) certify(t *testing.T, name string) {
	t.Helper()
	pair := must[devstack.Pair](t)(s.authority.Issue(devstack.Certificate{CommonName: name, Hosts: []string{"127.0.0.1"}}))
	if _, _, err := pair.Write(s.dir, "server"); err != nil {
		t.Fatal(err)
	}
}

// configure writes the shipped configuration with other settings of grpc.tls.
func (s *secured) configure(t *testing.T, settings string) {
	t.Helper()
	for _, name := range []string{"tiergate.yaml", "keys.yaml"} {
		content, err := os.ReadFile("../../config/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if name == "tiergate.yaml" {
			content = bytes.Replace(content, []byte("\ngrpc:\n"), []byte("\ngrpc:\n  tls: {"+settings+"}\n"), 1)
		}
		s.write(t, name, content)
	}
}

const (
	oneSided = "cert_file: server.pem, key_file: server.key"
	mutual   = oneSided + ", client_ca_file: clients.pem"
)

// issue makes a client's certificate.
func issue(t *testing.T, a *devstack.Authority, c devstack.Certificate) []tls.Certificate {
	t.Helper()
	return []tls.Certificate{must[tls.Certificate](t)(must[devstack.Pair](t)(a.Issue(c)).TLS())}
}

// ask asks for a decision over a connection of its own.
func (s *secured) ask(t *testing.T, c *tls.Config) error {
	t.Helper()
	creds := insecure.NewCredentials()
	if c != nil {
		creds = credentials.NewTLS(c)
	}
	conn := dial(t, s.start.GRPC.Address, grpc.WithTransportCredentials(creds))
	defer conn.Close()
	return checkOnce(t.Context(), conn, &authv3.CheckRequest{})
}

// shown returns the name of the certificate that the server shows to new connections.
func (s *secured) shown(t *testing.T, own []tls.Certificate) string {
	t.Helper()
	conn, err := tls.Dial("tcp", s.start.GRPC.Address, &tls.Config{RootCAs: s.authority.Pool(), Certificates: own, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
}

// TestClientsAreChecked: who is not to be served does not get through the handshake,
// and the log says why.
func TestClientsAreChecked(t *testing.T) {
	t.Parallel()
	s := startSecured(t, mutual+", client_names: [envoy.mesh, 'spiffe://mesh/envoy', Old Envoy]")
	stranger := must[*devstack.Authority](t)(devstack.NewAuthority("ours"))
	by := func(c devstack.Certificate) *tls.Config {
		return &tls.Config{RootCAs: s.authority.Pool(), Certificates: issue(t, s.authority, c)}
	}
	old := by(devstack.Certificate{Hosts: []string{"envoy.mesh"}})
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	older := old.Clone()
	older.MinVersion, older.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	now := time.Now()
	refused := 0
	for name, c := range map[string]struct {
		client *tls.Config
		served bool
	}{
		"by DNS name":              {by(devstack.Certificate{Hosts: []string{"other.mesh", "Envoy.Mesh"}}), true},
		"by URI":                   {by(devstack.Certificate{URIs: []string{"spiffe://mesh/envoy"}}), true},
		"by common name":           {by(devstack.Certificate{CommonName: "Old Envoy"}), true},
		"TLS 1.2":                  {older, true},
		"in clear":                 {nil, false},
		"without certificate":      {&tls.Config{RootCAs: s.authority.Pool()}, false},
		"of another authority":     {&tls.Config{RootCAs: s.authority.Pool(), Certificates: issue(t, stranger, devstack.Certificate{Hosts: []string{"envoy.mesh"}})}, false},
		"expired":                  {by(devstack.Certificate{Hosts: []string{"envoy.mesh"}, NotAfter: now.Add(-time.Second)}), false},
		"not yet":                  {by(devstack.Certificate{Hosts: []string{"envoy.mesh"}, NotBefore: now.Add(time.Hour)}), false},
		"another name":             {by(devstack.Certificate{CommonName: "upstream", Hosts: []string{"upstream.mesh"}, URIs: []string{"spiffe://mesh/upstream"}}), false},
		"a URI as its common name": {by(devstack.Certificate{CommonName: "spiffe://mesh/envoy", Hosts: []string{"upstream.mesh"}}), false},
		"a longer URI":             {by(devstack.Certificate{URIs: []string{"spiffe://mesh/envoy/x"}}), false},
		"TLS 1.1":                  {old, false},
	} {
		err := s.ask(t, c.client)
		if (err == nil) != c.served {
			t.Errorf("%s: %v", name, err)
		}
		if !c.served {
			refused++
		}
	}
	eventually(t, "refusals are counted", func() bool { return s.metric(t, "tiergate_tls_handshakes_refused_total", "") >= float64(refused) })
	if n := s.log.count("a TLS handshake failed"); n < 3 || n > 4 {
		t.Errorf("%d refusals are logged, want 3 (or one more, if the test takes ten seconds)", n)
	}
	before := s.metric(t, "tiergate_tls_handshakes_refused_total", "")
	if err := s.ask(t, older); err != nil || s.metric(t, "tiergate_tls_handshakes_refused_total", "") != before {
		t.Errorf("who may is refused, or counted as if: %v", err)
	}
}

// TestRefusedClientIsNamed: the log says what a client calls itself that is not listed.
func TestRefusedClientIsNamed(t *testing.T) {
	t.Parallel()
	s := startSecured(t, mutual+", client_names: [envoy.mesh]")
	own := issue(t, s.authority, devstack.Certificate{CommonName: "cn", Hosts: []string{"upstream.mesh"}, URIs: []string{"spiffe://mesh/upstream"}})
	if err := s.ask(t, &tls.Config{RootCAs: s.authority.Pool(), Certificates: own}); err == nil {
		t.Error("it is served")
	}
	want := `the client \"spiffe://mesh/upstream, upstream.mesh, cn\" is none of grpc.tls.client_names`
	eventually(t, want, func() bool { return s.log.count(want) == 1 })
}

// TestCertificatesAreReloaded: new connections see the new ones, roots and names too;
// open connections go on.
func TestCertificatesAreReloaded(t *testing.T) {
	t.Parallel()
	s := startSecured(t, mutual)
	envoy := issue(t, s.authority, devstack.Certificate{CommonName: "envoy"})
	client := &tls.Config{RootCAs: s.authority.Pool(), Certificates: envoy}
	open := dial(t, s.start.GRPC.Address, grpc.WithTransportCredentials(credentials.NewTLS(client)))
	goesOn := func(when string) {
		t.Helper()
		if err := checkOnce(t.Context(), open, &authv3.CheckRequest{}); err != nil {
			t.Errorf("the open connection, %s: %v", when, err)
		}
	}
	goesOn("at first")
	if s.shown(t, envoy) != "server" {
		t.Error("another certificate is shown")
	}
	s.certify(t, "renewed")
	eventually(t, "the new certificate is shown", func() bool { return s.shown(t, envoy) == "renewed" })
	goesOn("after the certificate changed")

	s.configure(t, mutual+", client_names: [other]")
	eventually(t, "a client that is listed no more is refused", func() bool { return s.ask(t, client) != nil })
	goesOn("after the names changed")

	second := must[*devstack.Authority](t)(devstack.NewAuthority("second"))
	s.write(t, "clients.pem", second.PEM())
	renamed := &tls.Config{RootCAs: s.authority.Pool(), Certificates: issue(t, second, devstack.Certificate{CommonName: "other"})}
	eventually(t, "clients of the new authority are served", func() bool { return s.ask(t, renamed) == nil })
	renamed.Certificates = issue(t, s.authority, devstack.Certificate{CommonName: "other"})
	if s.ask(t, renamed) == nil {
		t.Error("clients of the former authority are served")
	}
	goesOn("after the roots changed")
	if s.metric(t, "tiergate_config_restart_needed", "") != 0 {
		t.Error("certificates need a restart")
	}
	// The file does not lead to less: a half of it is refused, and the rest of the change.
	s.write(t, "server.key", []byte("nonsense"))
	eventually(t, "the fault shows", func() bool { return s.metric(t, "tiergate_config_last_reload_successful", "") == 0 })
	if s.shown(t, issue(t, second, devstack.Certificate{CommonName: "other"})) != "renewed" {
		t.Error("another certificate is shown")
	}
}

// TestNoReloadTakesSecurityAway: TLS, and that clients are asked for certificates, stay
// until a restart.
func TestNoReloadTakesSecurityAway(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ before, after string }{
		"neither any more": {mutual, ""}, "clients are not asked": {mutual, oneSided}, "no TLS": {oneSided, ""},
	} {
		s := startSecured(t, c.before)
		s.configure(t, c.after)
		eventually(t, "a restart is asked for", func() bool { return s.metric(t, "tiergate_config_restart_needed", "") == 1 })
		if s.ask(t, nil) == nil {
			t.Errorf("%s: a client in clear is served", name)
		}
		if c.before == mutual && s.ask(t, &tls.Config{RootCAs: s.authority.Pool()}) == nil {
			t.Errorf("%s: a client without certificate is served", name)
		}
		if err := s.ask(t, &tls.Config{RootCAs: s.authority.Pool(), Certificates: issue(t, s.authority, devstack.Certificate{})}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSessionsAreNotResumed, which would skip what was withdrawn meanwhile.
func TestSessionsAreNotResumed(t *testing.T) {
	t.Parallel()
	s := startSecured(t, mutual)
	client := &tls.Config{
		RootCAs: s.authority.Pool(), Certificates: issue(t, s.authority, devstack.Certificate{}), NextProtos: []string{"h2"},
		ClientSessionCache: tls.NewLRUClientSessionCache(10), ServerName: "127.0.0.1",
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		client.MinVersion, client.MaxVersion = version, version
		for range 3 {
			conn, err := tls.Dial("tcp", s.start.GRPC.Address, client)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Read(make([]byte, 1)) // the server's settings, and the ticket before them
			if conn.ConnectionState().DidResume {
				t.Error("a session is resumed")
			}
			conn.Close()
		}
	}
}

// TestNeverWithLess: what is wrong with the files ends a start.
func TestNeverWithLess(t *testing.T) {
	t.Parallel()
	s := &secured{authority: must[*devstack.Authority](t)(devstack.NewAuthority("ours")), dir: t.TempDir()}
	s.certify(t, "server")
	other := must[devstack.Pair](t)(s.authority.Issue(devstack.Certificate{}))
	if _, _, err := other.Write(s.dir, "other"); err != nil {
		t.Fatal(err)
	}
	s.write(t, "empty.pem", nil)
	for settings, want := range map[string]string{
		"cert_file: server.pem":                                       "grpc.tls.key_file",
		"key_file: server.key":                                        "grpc.tls.cert_file",
		"cert_file: server.pem, key_file: other.key":                  "grpc.tls.cert_file",
		"cert_file: nowhere.pem, key_file: server.key":                "grpc.tls.cert_file",
		oneSided + ", client_ca_file: empty.pem":                      "grpc.tls.client_ca_file",
		oneSided + ", client_ca_file: nowhere.pem":                    "grpc.tls.client_ca_file",
		oneSided + ", client_names: [envoy]":                          "grpc.tls.client_names",
		"client_ca_file: server.pem":                                  "grpc.tls.client_ca_file",
		oneSided + ", client_ca_file: server.pem, client_names: ['']": "grpc.tls.client_names[0]",
	} {
		s.configure(t, settings)
		_, _, err := config.Load(config.Options{File: filepath.Join(s.dir, "tiergate.yaml")})
		if err == nil || !strings.Contains(err.Error(), want+": ") {
			t.Errorf("%s: %v", settings, err)
		}
	}
}

// TestCertificateOutOfTime: a certificate that has expired, or is not valid yet, one between it and
// its root, and roots none of which holds, are told of with the date by config check and in the log of the server, which serves all the same.
// A key in the name of the file is not repeated.
func TestCertificateOutOfTime(t *testing.T) {
	t.Parallel()
	s := &secured{authority: must[*devstack.Authority](t)(devstack.NewAuthority("ours")), dir: t.TempDir()}
	past, later := time.Now().Add(-time.Hour).UTC().Truncate(time.Second), time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	pairs := map[string]devstack.Pair{}
	key := apikey.New().Reveal()
	for name, c := range map[string]devstack.Certificate{"server": {}, "expired": {CommonName: "old", NotBefore: past.Add(-time.Hour), NotAfter: past}, "early": {NotBefore: later}, key: {NotBefore: later}} {
		pairs[name] = must[devstack.Pair](t)(s.authority.Issue(c))
		if _, _, err := pairs[name].Write(s.dir, name); err != nil {
			t.Fatal(err)
		}
	}
	chain := devstack.Pair{Certificate: slices.Concat(pairs["server"].Certificate, pairs["expired"].Certificate), Key: pairs["server"].Key}
	if _, _, err := chain.Write(s.dir, "chain"); err != nil {
		t.Fatal(err)
	}
	redis := []string{"--set", "store.type=redis", "--set", "store.redis.tls.enabled=true", "--set", "store.redis.tls.cert_file=early.pem", "--set", "store.redis.tls.key_file=early.key"}
	file := filepath.Join(s.dir, "tiergate.yaml")
	ended := ": grpc.tls.cert_file: the certificate in expired.pem has expired, on " + past.Format(time.RFC3339) + ": put a new one in its place"
	early := "--set store.redis.tls.cert_file=early.pem: store.redis.tls.cert_file: the certificate in early.pem is not valid before " + later.Format(time.RFC3339)
	for _, c := range []struct {
		settings string
		args     []string
		warnings []string
	}{
		{oneSided, nil, nil},
		{"cert_file: expired.pem, key_file: expired.key", nil, []string{ended}},
		{"cert_file: expired.pem, key_file: expired.key", redis, []string{ended, early}},
		{"cert_file: expired.pem, key_file: expired.key", []string{"--without-secrets"}, nil},
		{"cert_file: chain.pem, key_file: chain.key", nil, []string{": grpc.tls.cert_file: the certificate of \"CN=old\" in chain.pem has expired, on " + past.Format(time.RFC3339)}},
		{oneSided + ", client_ca_file: expired.pem", nil, []string{": grpc.tls.client_ca_file: no certificate in expired.pem is valid now, "}},
		{oneSided + ", client_ca_file: chain.pem", nil, nil}, // one of two holds
		{oneSided, append(slices.Clone(redis[:4]), strings.Fields("--set store.redis.tls.cert_file="+key+".pem --set store.redis.tls.key_file="+key+".key")...), []string{strings.ReplaceAll(early, "early.pem", "tg_live_….pem")}},
	} {
		s.configure(t, c.settings)
		var text, list bytes.Buffer
		args := append([]string{"config", "check", "--config", file}, c.args...)
		err := errors.Join(run(t.Context(), args, environment{stdout: &text}), run(t.Context(), append(args, "--json"), environment{stdout: &list}))
		if err != nil || strings.Count(text.String(), "warning: ") != len(c.warnings) || !strings.Contains(text.String(), ": ok: ") {
			t.Errorf("%s %s: %v\n%s", c.settings, c.args, err, text.String())
		}
		if strings.Contains(text.String()+list.String(), key) {
			t.Errorf("%s %s: the key is repeated:\n%s%s", c.settings, c.args, text.String(), list.String())
		}
		var result struct {
			OK       bool
			Warnings config.Faults
		}
		if err := json.Unmarshal(list.Bytes(), &result); err != nil || !result.OK || len(result.Warnings) != len(c.warnings) {
			t.Fatalf("%s %s: %v\n%s", c.settings, c.args, err, list.String())
		}
		for i, want := range c.warnings {
			if warning := result.Warnings[i].String(); !strings.Contains(warning, want) || !strings.Contains(text.String(), "warning: "+warning+"\n") {
				t.Errorf("%s %s: want %s\n%s%s", c.settings, c.args, want, text.String(), list.String())
			}
		}
	}
	s.configure(t, "cert_file: chain.pem, key_file: chain.key")
	s.running = startServer(t, file)
	if s.log.count("has expired, on "+past.Format(time.RFC3339)) != 1 {
		t.Errorf("the log does not say once that a certificate has expired: %s", s.log.text.String())
	}
	if end := s.metric(t, "tiergate_tls_certificate_expiry_timestamp_seconds", ""); int64(end) != past.Unix() {
		t.Errorf("the first of the certificates ends at %f: want %d", end, past.Unix())
	}
}

// TestLogSaysWhoseCertificate: of a client that does not accept ours, and not of one that shows
// none, the log says that ours is meant.
func TestLogSaysWhoseCertificate(t *testing.T) {
	t.Parallel()
	s := startSecured(t, mutual)
	own := issue(t, s.authority, devstack.Certificate{CommonName: "envoy"})
	const ours = "the client does not accept the certificate of grpc.tls.cert_file"
	if s.ask(t, &tls.Config{RootCAs: s.authority.Pool()}) == nil {
		t.Error("a client without a certificate is served")
	}
	eventually(t, "the handshake is logged", func() bool { return s.log.count("a TLS handshake failed") > 0 })
	if n := s.log.count(ours); n != 0 {
		t.Errorf("%d times: %s", n, ours)
	}
	if s.ask(t, &tls.Config{RootCAs: x509.NewCertPool(), Certificates: own}) == nil {
		t.Error("a client without roots trusts us")
	}
	eventually(t, "ours is named", func() bool { return s.log.count(ours) > 0 })
}

// TestHealthOverTLS: the command line asks a listener that asks it for a certificate.
func TestHealthOverTLS(t *testing.T) {
	t.Parallel()
	s := startSecured(t, mutual)
	pair := must[devstack.Pair](t)(s.authority.Issue(devstack.Certificate{CommonName: "probe"}))
	cert, key, err := pair.Write(s.dir, "probe")
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(s.dir, "clients.pem")
	for name, c := range map[string]struct {
		args []string
		want string // of the error; "": none
	}{
		"as it should":        {[]string{"--ca", ca, "--cert", cert, "--key", key}, ""},
		"another name":        {[]string{"--ca", ca, "--cert", cert, "--key", key, "--server-name", "other"}, "see to the server's certificate, --ca and --server-name"},
		"no certificate":      {[]string{"--ca", ca}, "want no certificate? (--address, --cert)"}, // after the alert, or that the connection is closed
		"in clear":            {nil, "in clear? (--address, --ca)"},
		"no CA":               {[]string{"--cert", cert}, "set --ca too"},
		"CA is no such file":  {[]string{"--ca", "nowhere.pem"}, "read --ca"},
		"CA is a key":         {[]string{"--ca", key}, "has no certificate: want PEM"},
		"a key alone":         {[]string{"--ca", ca, "--key", key}, "set --cert and --key, or neither"},
		"a certificate alone": {[]string{"--ca", ca, "--cert", cert}, "set --cert and --key, or neither"},
		"no such key":         {[]string{"--ca", ca, "--cert", cert, "--key", "nowhere.pem"}, "read --cert and --key: open nowhere.pem"},
	} {
		var out bytes.Buffer
		err := health(t.Context(), append([]string{"--address", s.start.GRPC.Address}, c.args...), environment{stdout: &out, stderr: &out})
		if (c.want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v %s", name, err, out.String())
		}
	}
}
