package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/tiergate/tiergate/internal/apikey"
)

const (
	// dialTimeout is how long it may take to connect: longer than a call. The call that
	// asked for a connection gives up at its own time-out; the connection is for the next.
	dialTimeout = time.Second
	// patientTimeout bounds the calls that nobody's request waits for.
	patientTimeout = 5 * time.Second
	// patientPool is how many connections they have at the most, to each server.
	patientPool = 10
	// stateKept is how long a Cluster's slots are taken to be where they were. A call that
	// fails, or is sent elsewhere, has them looked up at once.
	stateKept = 5 * time.Second
)

// RedisAccess is how Redis lets TierGate in. It may change while connections are in use:
// new ones are made with what is valid then.
type RedisAccess struct {
	Password, SentinelPassword apikey.Key       // zero: none
	Certificate                *tls.Certificate // to show; nil: none
	Roots                      *x509.CertPool   // that servers' certificates lead to; nil: those of the system
	ServerName                 string           // that servers' certificates have; empty: the host of the address
}

// UseAccess replaces how Redis lets TierGate in. Connections there are stay.
func (r *Redis) UseAccess(a RedisAccess) { r.access.Store(&a) }

// dial connects to a server, or to a Sentinel.
func (r *Redis) dial(ctx context.Context, network, address string) (net.Conn, error) {
	plain := &net.Dialer{Timeout: dialTimeout, KeepAlive: time.Minute, Resolver: ownResolver()}
	if !r.options.TLS {
		return plain.DialContext(ctx, network, address)
	}
	conn, err := plain.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	secure := tls.Client(conn, r.tlsConfig(address))
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // it is of no use
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, fmt.Errorf("secure the connection to %s: no answer to the handshake in time: see whether the server speaks TLS there", address)
		}
		return nil, fmt.Errorf("secure the connection to %s: %w", address, err)
	}
	return secure, nil
}

// ownResolver is the default one, for one connection. All that share one share its lookups
// too: where a name server is silent for a while, whoever connects when it answers again
// would wait for what others have asked before, for ten seconds and more.
func ownResolver() *net.Resolver {
	d := net.DefaultResolver
	return &net.Resolver{PreferGo: d.PreferGo, StrictErrors: d.StrictErrors, Dial: d.Dial}
}

// tlsConfig is for one connection, so that it is made with what is valid now.
func (r *Redis) tlsConfig(address string) *tls.Config {
	access := r.access.Load()
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: access.Roots, ServerName: access.ServerName}
	if host, _, err := net.SplitHostPort(address); config.ServerName == "" && err == nil {
		config.ServerName = host
	}
	if access.Certificate != nil {
		config.Certificates = []tls.Certificate{*access.Certificate}
	}
	return config
}

// credentials are those of the servers that keep the counts.
func (r *Redis) credentials(context.Context) (username, password string, err error) {
	return r.options.Username, r.access.Load().Password.Reveal(), nil
}

// failoverName is what a client that asks Sentinels calls the server that they name.
const failoverName = "FailoverClient"

// enterSentinel authenticates a connection to a Sentinel. Its password may change, but the
// client would use the first one for ever.
func (r *Redis) enterSentinel(ctx context.Context, conn *redis.Conn) error {
	password := r.access.Load().SentinelPassword.Reveal()
	if password == "" || strings.Contains(conn.String(), failoverName) {
		return nil
	}
	var err error
	if r.options.SentinelUsername == "" {
		err = conn.Auth(ctx, password).Err()
	} else {
		err = conn.AuthACL(ctx, r.options.SentinelUsername, password).Err()
	}
	if err != nil {
		return withoutAnswer("AUTH", err) // the client's own clients of Sentinels have no hooks
	}
	return nil
}

// connect returns a client whose calls wait so long for an answer, if their context does
// not end before.
func (r *Redis) connect(timeout time.Duration, size int) redis.UniversalClient {
	o := r.options
	switch {
	case len(o.Cluster) > 0:
		client := redis.NewClusterClient(&redis.ClusterOptions{ // which appends to the addresses
			Addrs: slices.Clone(o.Cluster), CredentialsProviderContext: r.credentials, Dialer: r.dial,
			DialTimeout: dialTimeout, DialerRetries: 1, ReadTimeout: timeout, WriteTimeout: timeout, ContextTimeoutEnabled: true,
			PoolSize: size, PoolTimeout: timeout, PipelinePoolSize: -1, MaxRetries: -1, DisableIdentity: true,
			MinRetryBackoff: 2 * time.Millisecond, MaxRetryBackoff: 20 * time.Millisecond,
			// Else each call would ask Redis for all its commands, until it may and does answer.
			DisableRoutingPolicies: true, ClusterStateReloadInterval: stateKept, MaintNotificationsConfig: noMaintenance(),
		})
		client.OnNewNode(func(node *redis.Client) { node.AddHook(handshake{}) })
		return client
	case len(o.Sentinels) > 0:
		client := redis.NewFailoverClient(&redis.FailoverOptions{
			MasterName: o.SentinelMaster, SentinelAddrs: o.Sentinels, OnConnect: r.enterSentinel, DB: o.Database,
			CredentialsProviderContext: r.credentials, Dialer: r.dial,
			DialTimeout: dialTimeout, DialerRetries: 1, ReadTimeout: timeout, WriteTimeout: timeout, ContextTimeoutEnabled: true,
			PoolSize: size, PoolTimeout: timeout, PipelinePoolSize: -1, MaxRetries: -1, DisableIdentity: true,
		})
		client.AddHook(handshake{})
		return client
	default:
		options := r.single(o.Address, timeout)
		options.PoolSize = size
		return newClient(options)
	}
}

// newClient returns a client of one server.
func newClient(o *redis.Options) *redis.Client {
	client := redis.NewClient(o)
	client.AddHook(handshake{})
	return client
}

// single returns the options of a client of one server.
func (r *Redis) single(address string, timeout time.Duration) *redis.Options {
	return &redis.Options{
		Addr: address, DB: r.options.Database, CredentialsProviderContext: r.credentials, Dialer: r.dial,
		DialTimeout: dialTimeout, DialerRetries: 1, ReadTimeout: timeout, WriteTimeout: timeout, ContextTimeoutEnabled: true,
		PoolTimeout: timeout, PipelinePoolSize: -1, MaxRetries: -1, DisableIdentity: true, MaintNotificationsConfig: noMaintenance(),
	}
}

// noMaintenance refuses announcements of maintenance, which Redis itself does not make.
func noMaintenance() *maintnotifications.Config {
	return &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
}

// home returns the address of the server that has a key, as far as is known.
func (r *Redis) home(ctx context.Context, key string) (string, error) {
	if cluster, ok := r.client.(*redis.ClusterClient); ok {
		node, err := cluster.MasterForKey(ctx, key)
		if err != nil {
			return "", fmt.Errorf("find the server of a slot: %w", err)
		}
		return node.Options().Addr, nil
	}
	if len(r.options.Sentinels) == 0 {
		return r.options.Address, nil
	}
	var errs []error
	for _, address := range r.options.Sentinels {
		primary, err := r.primary(ctx, address)
		if err == nil {
			return primary, nil
		}
		errs = append(errs, fmt.Errorf("ask the Sentinel %s for the primary: %w", address, err))
	}
	return "", errors.Join(errs...)
}

// primary asks a Sentinel.
func (r *Redis) primary(ctx context.Context, sentinel string) (string, error) {
	options := r.single(sentinel, dialTimeout)
	options.DB, options.CredentialsProviderContext, options.OnConnect, options.PoolSize = 0, nil, r.enterSentinel, 1
	client := redis.NewSentinelClient(options)
	defer func() { _ = client.Close() }() // nothing of use is on its way
	address, err := client.GetMasterAddrByName(ctx, r.options.SentinelMaster).Result()
	if err != nil {
		return "", err
	}
	if len(address) != 2 {
		return "", fmt.Errorf("%d values in the answer, want host and port", len(address))
	}
	return net.JoinHostPort(address[0], address[1]), nil
}

// lookAgain has a Cluster's slots looked up anew, for the next calls.
func (r *Redis) lookAgain(ctx context.Context) {
	for _, client := range []redis.UniversalClient{r.client, r.patient} {
		if cluster, ok := client.(*redis.ClusterClient); ok {
			cluster.ReloadState(ctx)
		}
	}
}
