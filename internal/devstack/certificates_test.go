package devstack

import (
	"crypto/x509"
	"net/url"
	"os"
	"testing"
	"time"
)

// TestAuthority: what it issues leads to it, says what was asked for, and can be read
// from the files.
func TestAuthority(t *testing.T) {
	t.Parallel()
	a, err := NewAuthority("ours")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := a.Issue(Certificate{CommonName: "envoy", Hosts: []string{"tiergate", "127.0.0.1"}, URIs: []string{"spiffe://mesh/envoy"}})
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile, err := pair.Write(t.TempDir(), "envoy")
	if err != nil {
		t.Fatal(err)
	}
	cert, err1 := os.ReadFile(certFile)
	key, err2 := os.ReadFile(keyFile)
	loaded, err := Pair{cert, key}.TLS()
	if err1 != nil || err2 != nil || err != nil {
		t.Fatal(err1, err2, err)
	}
	leaf := loaded.Leaf
	for _, host := range []string{"tiergate", "127.0.0.1"} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: a.Pool(), DNSName: host}); err != nil {
			t.Error(err)
		}
	}
	if want := (&url.URL{Scheme: "spiffe", Host: "mesh", Path: "/envoy"}); leaf.Subject.CommonName != "envoy" || len(leaf.URIs) != 1 || *leaf.URIs[0] != *want {
		t.Errorf("%v %v", leaf.Subject, leaf.URIs)
	}
	other, err := NewAuthority("ours")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: other.Pool()}); err == nil {
		t.Error("another authority of the same name vouches for it")
	}
	expired, err := a.Issue(Certificate{CommonName: "late", NotAfter: time.Now().Add(-time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	late, err := expired.TLS()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := late.Leaf.Verify(x509.VerifyOptions{Roots: a.Pool()}); err == nil {
		t.Error("an expired certificate is good")
	}
}
