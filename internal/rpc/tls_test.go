package rpc

import (
	"crypto/tls"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/credentials"
)

// certificate is one for tests.
func certificate() tls.Certificate {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	return s.TLS.Certificates[0]
}

// By TLS, calls are answered, and a client that says nothing, or stops within the handshake, is
// ended by the time that it may take, or by the end of the server.
func TestTLS(t *testing.T) {
	config := &tls.Config{Certificates: []tls.Certificate{certificate()}, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12}
	secured := func(o *Options) { o.Credentials = credentials.NewTLS(config) }
	client := func(r *rig, change func(*tls.Config)) (*tls.Conn, error) {
		c := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}
		change(c)
		conn := tls.Client(r.dial().Conn, c)
		return conn, conn.HandshakeContext(r.t.Context())
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := start(t, secured)
				conn, err := client(r, func(c *tls.Config) { c.MaxVersion = version })
				if err != nil {
					t.Fatal(err)
				}
				p := newPeer(t, conn)
				p.preface()
				p.must(p.WriteSettings())
				p.ask(1, "Echo", string(make([]byte, 10_000)))
				if e := p.next(); e != (event{kind: "status", id: 1}) {
					t.Errorf("%+v", e)
				}
			})
		})
	}
	t.Run("not for HTTP/2", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			conn, err := client(start(t, secured), func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} })
			if err != nil { // the server may look at it at the end
				return
			}
			if e := newPeer(t, conn).next(); e.kind != "closed" {
				t.Errorf("%+v", e)
			}
		})
	})
	for name, said := range map[string]string{"nothing": "", "half a record": "\x16\x03\x01\x02\x00\x01", "HTTP/2 in clear": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"} {
		for how, stop := range map[string]bool{"late": false, "stopped": true} {
			t.Run(name+"/"+how, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					r := start(t, secured)
					p := r.dial()
					_, err := p.Write([]byte(said))
					p.must(err)
					began := time.Now()
					synctest.Wait()
					if stop {
						r.server.Stop()
					}
					if e := p.next(); e.kind != "closed" {
						t.Errorf("%+v", e)
					}
					most := 10 * time.Second
					if stop {
						most = 0
					}
					if took := time.Since(began); took > most {
						t.Errorf("it took %v", took)
					}
				})
			})
		}
	}
}
