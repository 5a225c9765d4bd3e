package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/devstack"
)

// TestMain stops the servers that tests share.
func TestMain(m *testing.M) {
	os.Exit(withShared(m.Run))
}

func withShared(run func() int) int {
	dir, err := os.MkdirTemp("", "redis-forms")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	shared.dir = dir
	shared.forms = map[string]func() (RedisOptions, error){
		"acl":      sync.OnceValues(shared.startUser),
		"tls":      sync.OnceValues(func() (RedisOptions, error) { return shared.startTLS(false) }),
		"mtls":     sync.OnceValues(func() (RedisOptions, error) { return shared.startTLS(true) }),
		"sentinel": sync.OnceValues(shared.startSentinel),
		"cluster":  sync.OnceValues(shared.startCluster),
	}
	code := run()
	if err := shared.stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// shared are the servers of the forms of Redis. Each is started by the first test that asks
// for it, and each test has a prefix of its own there.
var shared sharedServers

type sharedServers struct {
	dir      string
	forms    map[string]func() (RedisOptions, error)
	prefixes atomic.Int64
	mu       sync.Mutex
	stops    []func() error
}

func (s *sharedServers) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, stop := range s.stops {
		errs = append(errs, stop())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// options returns how to reach a form.
func (s *sharedServers) options(t *testing.T, form string) RedisOptions {
	t.Helper()
	o, err := s.forms[form]()
	if err != nil {
		t.Fatal(err)
	}
	o.KeyPrefix = "tiergate:" + strconv.FormatInt(s.prefixes.Add(1), 10) // the documented user may use tiergate:*
	o.Timeout, o.PoolSize = 10*time.Second, 16
	return o
}

func (s *sharedServers) add(stop func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stops = append(s.stops, stop)
}

// forms are the names of all forms.
func forms() []string { return []string{"acl", "tls", "mtls", "sentinel", "cluster"} }

// formStore returns a store on a form of Redis.
func formStore(t *testing.T, form string) *Redis {
	t.Helper()
	return openRedis(t, shared.options(t, form))
}

// openRedis returns a store that is closed with the test.
func openRedis(t *testing.T, o RedisOptions) *Redis {
	t.Helper()
	r := NewRedis(o)
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

const testPassword = "open-sesame"

// documentedUser returns the command that makes the documented user, with more rights.
func documentedUser(info string, more ...string) ([]string, error) {
	line, err := documentedLine(info)
	if err != nil {
		return nil, err
	}
	if strings.Count(line, ">PASSWORD ") != 1 {
		return nil, fmt.Errorf("no user in the block %q: %q", info, line)
	}
	return append(strings.Fields(strings.Replace(line, ">PASSWORD", ">"+testPassword, 1)), more...), nil
}

// documentedLine returns the first line of a block about Redis.
func documentedLine(info string) (string, error) {
	block, err := documentedBlock(info)
	line, _, _ := strings.Cut(block, "\n")
	return line, err
}

// documentedBlock returns a block about Redis.
func documentedBlock(info string) (string, error) {
	content, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		return "", err
	}
	_, after, _ := strings.Cut(string(content), "\n```redis "+info+"\n")
	block, _, found := strings.Cut(after, "\n```\n")
	if !found {
		return "", fmt.Errorf("docs/configuration.md has no block %q", "redis "+info)
	}
	return block, nil
}

// documentedWords returns the lines of blocks of redis.conf as words of redis-server.
func documentedWords(infos ...string) ([]string, error) {
	var words []string
	for _, info := range infos {
		block, err := documentedBlock(info)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(strings.ReplaceAll(block, "PASSWORD", testPassword)) {
			words = append(words, strings.Fields("--"+line)...)
		}
	}
	return words, nil
}

// asUser lets a store in as the documented user, once it is made on servers.
func asUser(o RedisOptions, servers []*devstack.RedisServer, more ...string) (RedisOptions, error) {
	words, err := documentedUser("acl", more...)
	if err != nil {
		return o, err
	}
	for _, r := range servers {
		if _, err := r.Do(context.Background(), words...); err != nil {
			return o, err
		}
	}
	o.Username, o.Access.Password = words[2], apikey.Redacting(testPassword)
	return o, nil
}

func (s *sharedServers) startUser() (RedisOptions, error) {
	r, err := devstack.StartRedisServer(context.Background(), s.dir)
	if err != nil {
		return RedisOptions{}, err
	}
	s.add(r.Stop)
	return asUser(RedisOptions{Address: r.Address}, []*devstack.RedisServer{r})
}

func (s *sharedServers) startTLS(mutual bool) (RedisOptions, error) {
	a, err := newAuthority(s.dir)
	if err != nil {
		return RedisOptions{}, err
	}
	asks := "no"
	if mutual {
		asks = "yes"
	}
	r, err := devstack.StartTLSRedisServer(context.Background(), s.dir, append(a.serverWords(), "--tls-auth-clients", asks)...)
	if err != nil {
		return RedisOptions{}, err
	}
	s.add(r.Stop)
	o := RedisOptions{Address: r.Address, TLS: true, Access: RedisAccess{Roots: a.pool}}
	if mutual {
		o.Access.Certificate = &a.client
	}
	return o, nil
}

// startSentinel lets documented users in, at the server and at the Sentinels.
func (s *sharedServers) startSentinel() (RedisOptions, error) {
	set, err := devstack.StartSentinels(context.Background(), devstack.SentinelOptions{Dir: s.dir})
	if err != nil {
		return RedisOptions{}, err
	}
	s.add(set.Stop)
	return sentinelUser(set)
}

func sentinelUser(set *devstack.SentinelSet) (RedisOptions, error) {
	words, err := documentedUser("acl sentinel")
	if err != nil {
		return RedisOptions{}, err
	}
	for _, r := range set.Sentinels {
		if _, err := r.Do(context.Background(), words...); err != nil {
			return RedisOptions{}, err
		}
	}
	o := RedisOptions{Sentinels: set.Addresses(), SentinelMaster: devstack.SentinelMaster, SentinelUsername: words[2]}
	o.Access.SentinelPassword = apikey.Redacting(testPassword)
	return asUser(o, set.Servers)
}

func (s *sharedServers) startCluster() (RedisOptions, error) {
	c, err := devstack.StartRedisCluster(context.Background(), devstack.ClusterOptions{Dir: s.dir})
	if err != nil {
		return RedisOptions{}, err
	}
	s.add(c.Stop)
	return clusterUser(RedisOptions{Cluster: c.Addresses()[:2]}, c)
}

// clusterUser lets a store in as the documented user of a Cluster, which needs more rights.
func clusterUser(o RedisOptions, c *devstack.RedisCluster) (RedisOptions, error) {
	content, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		return o, err
	}
	_, more, _ := strings.Cut(string(content), "\n- A Cluster needs ")
	more, _, found := strings.Cut(more, " too.")
	if !found {
		return o, errors.New("docs/configuration.md does not say what a Cluster needs")
	}
	return asUser(o, c.Servers, strings.Fields(strings.NewReplacer("`", "", " and", "").Replace(more))...)
}

// An authority has issued a certificate to a server and one to a client.
type authority struct {
	pool                        *x509.CertPool
	client                      tls.Certificate
	caFile, serverFile, keyFile string
	expiredFile, expiredKeyFile string // of the server too
}

// serverWords are what a redis-server with TLS is started with.
func (a *authority) serverWords() []string {
	return []string{"--tls-cert-file", a.serverFile, "--tls-key-file", a.keyFile, "--tls-ca-cert-file", a.caFile}
}

func newAuthority(parent string) (*authority, error) {
	dir, err := os.MkdirTemp(parent, "tls")
	if err != nil {
		return nil, err
	}
	issuer, err := devstack.NewAuthority("authority")
	if err != nil {
		return nil, err
	}
	a := &authority{pool: issuer.Pool(), caFile: filepath.Join(dir, "ca.pem")}
	if err := os.WriteFile(a.caFile, issuer.PEM(), 0o600); err != nil {
		return nil, err
	}
	server, err := issuer.Issue(devstack.Certificate{CommonName: "redis", Hosts: []string{"127.0.0.1", "redis.example.net"}})
	if err != nil {
		return nil, err
	}
	if a.serverFile, a.keyFile, err = server.Write(dir, "server"); err != nil {
		return nil, err
	}
	expired, err := issuer.Issue(devstack.Certificate{CommonName: "redis", Hosts: []string{"127.0.0.1"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	if err != nil {
		return nil, err
	}
	if a.expiredFile, a.expiredKeyFile, err = expired.Write(dir, "expired"); err != nil {
		return nil, err
	}
	client, err := issuer.Issue(devstack.Certificate{CommonName: "client"})
	if err != nil {
		return nil, err
	}
	a.client, err = client.TLS()
	return a, err
}
