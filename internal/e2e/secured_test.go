package e2e

import (
	"context"
	"crypto/tls"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tiergate/tiergate/internal/devstack"
)

// inCluster puts a document's settings into the shipped cluster tiergate.
func inCluster(t *testing.T, text string) func([]byte) []byte {
	t.Helper()
	return func(file []byte) []byte {
		return edited(t, string(file), func(doc map[string]any) {
			done := 0
			walk(doc, func(_ string, list []any) []any {
				for _, entry := range list {
					if m, ok := entry.(map[string]any); ok && m["name"] == "tiergate" && m["load_assignment"] != nil {
						maps.Copy(m, mapping(t, text))
						done++
					}
				}
				return list
			})
			if done != 1 {
				t.Fatalf("%d clusters are named tiergate", done)
			}
		})
	}
}

// A mesh is what TierGate and Envoy know each other by.
type mesh struct {
	authority *devstack.Authority
	dir       string
}

func newMesh(t *testing.T) *mesh {
	t.Helper()
	authority, err := devstack.NewAuthority("mesh")
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{authority: authority, dir: t.TempDir()}
	if err := os.WriteFile(filepath.Join(m.dir, "ca.pem"), authority.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	m.issue(t, "tiergate", devstack.Certificate{CommonName: "first", Hosts: []string{"tiergate"}})
	m.issue(t, "envoy", devstack.Certificate{URIs: []string{"spiffe://mesh/envoy"}})
	m.issue(t, "probe", devstack.Certificate{CommonName: "probe"})
	return m
}

// issue writes a certificate to the mesh's directory.
func (m *mesh) issue(t *testing.T, name string, c devstack.Certificate) {
	t.Helper()
	pair, err := m.authority.Issue(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := pair.Write(m.dir, name); err != nil {
		t.Fatal(err)
	}
}

// probe is what asks TierGate for its health.
func (m *mesh) probe(t *testing.T) *tls.Config {
	t.Helper()
	own, err := tls.LoadX509KeyPair(filepath.Join(m.dir, "probe.pem"), filepath.Join(m.dir, "probe.key"))
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{RootCAs: m.authority.Pool(), Certificates: []tls.Certificate{own}, ServerName: "tiergate", NextProtos: []string{"h2"}}
}

// options secure a stack by the document's cluster. As long as Envoy's connections last
// through few calls, new ones are opened all the time.
func (m *mesh) options(t *testing.T) devstack.Options {
	t.Helper()
	secured := inCluster(t, strings.ReplaceAll(block(t, "yaml cluster tls"), "/etc/envoy/tls", m.dir))
	return devstack.Options{
		ServerTLS: m.probe(t),
		Sets: []string{
			"grpc.tls.cert_file=" + m.dir + "/tiergate.pem", "grpc.tls.key_file=" + m.dir + "/tiergate.key",
			"grpc.tls.client_ca_file=" + m.dir + "/ca.pem", "grpc.tls.client_names=['spiffe://mesh/envoy', probe]",
		},
		EditEnvoy: func(file []byte) []byte {
			keepalive := "http2_protocol_options: {connection_keepalive: {interval: 10s, timeout: 2s}}"
			if !strings.Contains(string(file), keepalive) {
				t.Fatal("the cluster has other protocol options")
			}
			return secured([]byte(strings.Replace(string(file), "        explicit_http_config:\n          "+keepalive,
				"        common_http_protocol_options: {max_requests_per_connection: 10}\n        explicit_http_config:\n          "+keepalive, 1)))
		},
	}
}

// TestMutualTLS: Envoy and TierGate show each other certificates. That of TierGate changes
// under traffic, and no request fails for it.
func TestMutualTLS(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		m := newMesh(t)
		o := m.options(t)
		o.Chain = chain
		s := up(t, o)
		freshMinute(t, 10*time.Second)
		checkSix(t, do(t, s, call{key: "sk-demo-pro"}), "100", "99", "chat", "1", "3")
		shown := func() string {
			conn, err := tls.Dial("tcp", s.TierGate, o.ServerTLS)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
		}
		var sent, failed atomic.Int64
		var over atomic.Bool
		var traffic sync.WaitGroup
		defer traffic.Wait() // also where something fails
		defer over.Store(true)
		for range 4 {
			traffic.Go(func() {
				for !over.Load() {
					if r := do(t, s, call{key: "sk-demo-enterprise"}); r.StatusCode != http.StatusOK {
						failed.Add(1)
						t.Errorf("%s %s", r.Status, r.body)
					}
					sent.Add(1)
				}
			})
		}
		for _, name := range []string{"second", "third"} {
			m.issue(t, "tiergate", devstack.Certificate{CommonName: name, Hosts: []string{"tiergate"}})
			eventuallyWithin(t, 20*time.Second, "the "+name+" certificate is shown", func() bool { return shown() == name })
			seen := sent.Load() // and Envoy's new connections have it
			eventuallyWithin(t, 20*time.Second, "requests go on", func() bool { return sent.Load() > seen+100 })
		}
		over.Store(true)
		traffic.Wait()
		t.Logf("%d requests, %d failed", sent.Load(), failed.Load())
		if n := metric(t, s, "tiergate_tls_handshakes_refused_total"); n != 0 {
			t.Errorf("%.0f handshakes failed", n)
		}
		if chain == "ext_authz" {
			eventuallyWithin(t, 10*time.Second, "answers are settled", func() bool { return metric(t, s, "tiergate_settlements_total", `result="settled"`) > 0 })
		}
	})
}

// TestDistrust: an Envoy that TierGate does not serve, or that does not believe it, lets
// nothing through, and its clients get the answer for that.
func TestDistrust(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(t *testing.T, m *mesh, o *devstack.Options){
		"another name": func(t *testing.T, m *mesh, _ *devstack.Options) {
			m.issue(t, "envoy", devstack.Certificate{URIs: []string{"spiffe://mesh/upstream"}})
		},
		"an expired certificate": func(t *testing.T, m *mesh, _ *devstack.Options) {
			m.issue(t, "envoy", devstack.Certificate{URIs: []string{"spiffe://mesh/envoy"}, NotAfter: time.Now().Add(-time.Minute)})
		},
		"another authority": func(t *testing.T, m *mesh, _ *devstack.Options) {
			stranger := newMesh(t)
			stranger.dir = m.dir
			stranger.issue(t, "envoy", devstack.Certificate{URIs: []string{"spiffe://mesh/envoy"}})
		},
		"in clear": func(_ *testing.T, _ *mesh, o *devstack.Options) { o.EditEnvoy = nil },
		"TierGate is another": func(t *testing.T, m *mesh, o *devstack.Options) {
			m.issue(t, "tiergate", devstack.Certificate{Hosts: []string{"other"}})
			o.ServerTLS.ServerName = "other"
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t)
			o := m.options(t)
			change(t, m, &o)
			s := up(t, o)
			for range 3 {
				r := do(t, s, call{key: "sk-demo-pro"})
				if r.StatusCode != http.StatusServiceUnavailable || errorCode(t, r) != "limiter_unavailable" {
					t.Errorf("%s %s", r.Status, r.body)
				}
				checkSix(t, r, "0", "0", "default", "0", "1")
			}
			eventuallyWithin(t, 10*time.Second, "refusals are counted", func() bool { return metric(t, s, "tiergate_tls_handshakes_refused_total") > 0 })
			if log, err := os.ReadFile(s.LogFile("tiergate")); err != nil || !strings.Contains(string(log), "a TLS handshake failed") {
				t.Errorf("the log does not say why: %v", err)
			}
		})
	}
}

// TestOverload: while an instance has as many calls as it may, clients get the answer for
// a limiter that is away, at once; health is told, and afterwards all is as before.
func TestOverload(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		s := up(t, devstack.Options{Chain: chain, Sets: []string{"grpc.max_calls=1"}})
		release := busy(t, s)
		began := time.Now()
		for range 3 {
			r := do(t, s, call{key: "sk-demo-pro"})
			if r.StatusCode != http.StatusServiceUnavailable || errorCode(t, r) != "limiter_unavailable" || r.Header.Get("Retry-After") != "1" {
				t.Errorf("%s %v %s", r.Status, r.Header, r.body)
			}
			checkSix(t, r, "0", "0", "default", "0", "1")
		}
		if took := time.Since(began); took > 5*time.Second { // Envoy waits that long for an answer
			t.Errorf("refusals took %s", took)
		}
		if out, err := tiergate(t, "health", "--address", s.TierGate); err != nil || out != "SERVING\n" {
			t.Errorf("health: %q, %v", out, err)
		}
		if metric(t, s, "tiergate_overload_refused_total", `kind="call"`) < 3 {
			t.Error("refusals are not counted")
		}
		release()
		freshMinute(t, 5*time.Second)
		eventuallyWithin(t, 5*time.Second, "there is room again", func() bool { return do(t, s, call{key: "sk-demo-pro"}).StatusCode == http.StatusOK })
	})
}

// busy has a call begun at an instance, of which nothing more is sent until the function is called.
func busy(t *testing.T, s *devstack.Stack) (release func()) {
	t.Helper()
	conn, err := grpc.NewClient(s.TierGate, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, release := context.WithCancel(t.Context())
	t.Cleanup(release)
	if _, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, authv3.Authorization_Check_FullMethodName); err != nil {
		t.Fatal(err)
	}
	eventuallyWithin(t, 5*time.Second, "the call is under way", func() bool { return metric(t, s, "tiergate_calls") == 1 })
	return release
}
