package config

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// name is what tiers and resources may be called: they become header values,
// metric labels and parts of counter names.
var name = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,31}$`)

// A checker turns what is written into checked values and gathers the faults.
type checker struct {
	*document

	loader *loader
	sets   []string
	below  Faults // of the files that the configuration names
}

// fault adds a fault at a path.
func (c *checker) fault(path, format string, args ...any) {
	f := c.found(path, format, args...)
	if f.Source == c.source {
		c.faults = append(c.faults, f)
	} else {
		c.below = append(c.below, f)
	}
}

// warn adds a warning at a path.
func (c *checker) warn(path, format string, args ...any) {
	c.loader.config.Warnings = append(c.loader.config.Warnings, c.found(path, format, args...))
}

// found is what is wrong at a path, where it stands in the file or in a --set.
func (c *checker) found(path, format string, args ...any) Fault {
	f := Fault{Path: path, Problem: fmt.Sprintf(format, args...)}
	for _, set := range slices.Backward(c.sets) { // the last holds
		if strings.HasPrefix(set, path+"=") {
			f.Source = "--set " + set
			return f
		}
	}
	f.Source, f.Line = c.source, c.line(path)
	return f
}

// named checks what a tier or a resource is called. Others see it and search for it.
func (c *checker) named(at, n string) {
	if err := apikey.CheckPublic(n); err != nil {
		c.fault(at, "%v", err)
	} else if !name.MatchString(n) {
		c.fault(at, "%q: want a name of lower-case letters, digits, - and _, at most 32", n)
	}
}

func (c *checker) check(f file) {
	start, reload := &c.loader.config.Start, &c.loader.config.Reload
	start.GRPC = c.address("grpc.address", f.GRPC.Address, true)
	start.Listener, reload.Listener = c.listener(f.GRPC)
	start.Operator = c.address("operator.address", f.Operator.Address, false)
	start.Customer = c.address("customer.address", f.Customer.Address, false)
	c.distinct(start.GRPC, start.Operator, start.Customer)
	start.LogLevel = c.logLevel(f.Log.Level)
	start.LogJSON = c.oneOf("log.format", f.Log.Format, "text", "json") == "json"
	start.ShutdownDelay = c.duration("shutdown.delay", f.Shutdown.Delay, 0, 10*time.Minute)
	start.ShutdownTimeout = c.duration("shutdown.timeout", f.Shutdown.Timeout, time.Millisecond, 10*time.Minute)
	start.Store = c.store(f.Store)
	if start.Store.Redis {
		reload.Redis = c.redisAccess(f.Store.Redis)
	}
	start.Tracing = c.tracing(f.Tracing)
	reload.Identity = c.identity(f.ExtAuthz)
	start.SessionSecret = c.sessionSecret(f.Customer)
	start.UsageInterval = c.duration("usage.interval", f.Usage.Interval, 100*time.Millisecond, time.Minute)
	start.UsageMaxSeries = c.number("usage.max_series", f.Usage.MaxSeries, 1, 10_000_000)
	reload.AdminTokens = c.adminTokens(f.Operator.Tokens)
	reload.ForwardCredentials = f.Keys.ForwardCredentials
	reload.AllowDemoKeys = f.AllowDemoKeys
	reload.Unlimited = c.unlimited(f.Headers.Unlimited)
	reload.PerMetricHeaders, reload.IETFHeaders = f.Headers.PerMetric, f.Headers.IETF
	reload.RateLimit = c.rateLimit(f.RateLimit)
	reload.KeyHeaders = c.keyHeaders(f.Keys.Headers)
	reload.Peppers = c.peppers(f.Keys.Peppers)
	reload.Resources = c.resources(f.Resources)
	reload.Tokens = c.tokens(f, reload.Resources)
	reload.Plans = c.tiers(f, reload.Resources)
	reload.Pools = c.pools(f.Capacity, reload.Resources)
	reload.Directory = c.keys(f.Keys.File)
}

func (c *checker) address(path, s string, unixToo bool) Address {
	if socket, ok := strings.CutPrefix(s, "unix:"); ok && unixToo {
		if !filepath.IsAbs(socket) {
			c.fault(path, "socket path %q is not absolute: want unix:/path/to/socket", socket)
		}
		return Address{"unix", socket}
	}
	want := "want host:port"
	if unixToo {
		want += " or unix:/path/to/socket"
	}
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		c.fault(path, "address %q: %s", s, want)
	} else if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		c.fault(path, "address %q: port %q is not a number from 0 to 65535", s, port)
	}
	return Address{"tcp", s}
}

func (c *checker) logLevel(s string) slog.Level {
	var level slog.Level
	if c.oneOf("log.level", s, "debug", "info", "warn", "error") == s {
		_ = level.UnmarshalText([]byte(s)) // one of the four
	}
	return level
}

func (c *checker) oneOf(path, s string, allowed ...string) string {
	if !slices.Contains(allowed, s) {
		c.fault(path, "unknown value %q: want %s", s, strings.Join(allowed, " or "))
		return ""
	}
	return s
}

func (c *checker) duration(path, s string, least, most time.Duration) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		c.fault(path, "%q is no duration: want a number with a unit, such as 50ms", s)
	} else if d < least || d > most {
		c.fault(path, "%s is out of range: want %s to %s", s, least, most)
	}
	return d
}

func (c *checker) number(path string, n, least, most whole) int {
	if n < least || n > most {
		c.fault(path, "%d is out of range: want %d to %d", n, least, most)
	}
	return int(n)
}

func (c *checker) unlimited(s string) UnlimitedHeader {
	if s == "omit" {
		return UnlimitedHeader{Omit: true}
	}
	if n, err := strconv.ParseInt(s, 10, 64); s != "unlimited" && (err != nil || n < 0) {
		c.fault("headers.unlimited", "%q: want unlimited, omit or a number", s)
	}
	return UnlimitedHeader{Text: s}
}

func (c *checker) rateLimit(s rateLimitSection) RateLimit {
	if s.Domain == "" {
		c.fault("ratelimit.domain", "empty: want the domain that Envoy's filter names")
	}
	seen := map[string]string{}
	for _, e := range []struct {
		field, entry string
		optional     bool
	}{
		{"api_key", s.Entries.APIKey, false},
		{"resource", s.Entries.Resource, false},
		{"path", s.Entries.Path, false},
		{"priority", s.Entries.Priority, false},
		{"key_id", s.Entries.KeyID, true},
		{"tier", s.Entries.Tier, true},
		{"fact_prefix", s.Entries.FactPrefix, false},
	} {
		at := "ratelimit.entries." + e.field
		if e.entry == "" {
			if !e.optional {
				c.fault(at, "empty: want the name of a descriptor entry")
			}
			continue
		}
		if other, twice := seen[e.entry]; twice {
			c.fault(at, "%q is the name of %s already", e.entry, other)
		}
		seen[e.entry] = e.field
	}
	if s.Entries.Tier != "" && s.Entries.KeyID == "" {
		c.fault("ratelimit.entries.tier", "a tier is believed only beside a key ID: set key_id too")
	}
	if s.SettlementDomain == "" || s.SettlementDomain == s.Domain {
		c.fault("ratelimit.settlement_domain", "%q: want a domain other than ratelimit.domain", s.SettlementDomain)
	}
	hits := quota.Requests
	if c.oneOf("ratelimit.hits", s.Hits, "requests", "tokens") == "tokens" {
		hits = quota.Tokens
	}
	return RateLimit{
		SettlementDomain: s.SettlementDomain, FactPrefix: s.Entries.FactPrefix, Hits: hits,
		NegativeHits: s.NegativeHits, LimitOverride: s.LimitOverride,
		MaxDescriptors: c.number("ratelimit.max_descriptors", s.MaxDescriptors, 1, 10_000),
		AllowUnknown:   c.oneOf("ratelimit.unknown", s.Unknown, "refuse", "allow") == "allow",
		Domain:         s.Domain, KeyID: s.Entries.KeyID, Tier: s.Entries.Tier, APIKey: s.Entries.APIKey, Resource: s.Entries.Resource,
		Path: s.Entries.Path, Priority: s.Entries.Priority,
	}
}

// keyHeaders checks the request headers that carry keys.
func (c *checker) keyHeaders(headers []string) []string {
	if headers == nil {
		return []string{"authorization", "x-api-key", "api-key"}
	}
	if len(headers) == 0 {
		c.fault("keys.headers", "empty: want at least one header")
	}
	var result []string
	for i, h := range headers {
		at := fmt.Sprintf("keys.headers[%d]", i)
		h = strings.ToLower(h)
		if !httpguts.ValidHeaderFieldName(h) || strings.HasPrefix(h, "x-tiergate-") || h == "host" {
			c.fault(at, "%q cannot be the name of a header that carries a key", h)
		}
		if slices.Contains(result, h) {
			c.fault(at, "%q is listed already", http.CanonicalHeaderKey(h))
		}
		result = append(result, h)
	}
	return result
}

// The shortest admin token and the shortest secret of sessions, in bytes.
const (
	minToken         = 16
	minSessionSecret = 32
)

// sessionSecret reads the secret that signs sessions.
func (c *checker) sessionSecret(s customerSection) apikey.Key {
	at := "customer.session_secret_file"
	if s.SessionSecretFile == "" {
		at = "customer.session_secret_env"
	}
	secret, err := c.loader.secret(s.SessionSecretFile, s.SessionSecretEnv)
	switch {
	case err != nil:
		c.fault(at, "%v", err)
	case secret == "":
		return apikey.Key{}
	case len(secret) < minSessionSecret:
		c.fault(at, "the secret has %d bytes: want at least %d, such as the output of openssl rand -hex 32", len(secret), minSessionSecret)
	}
	return apikey.Redacting(secret)
}

// adminTokens reads the tokens of operators. Its faults repeat no name: it may be the token, in the wrong place.
func (c *checker) adminTokens(sections []tokenSection) []AdminToken {
	var tokens []AdminToken
	for i, s := range sections {
		at := fmt.Sprintf("operator.tokens[%d]", i)
		if err := apikey.CheckID(s.Name); err != nil {
			c.fault(at+".name", "%v", err)
		}
		secret, err := c.loader.neededSecret(s.File, s.Env)
		switch {
		case err != nil:
		case strings.TrimSpace(secret) != secret:
			err = errors.New("the token begins or ends with a blank: take it away")
		case len(secret) < minToken:
			err = fmt.Errorf("the token has %d bytes: want at least %d, such as the output of openssl rand -hex 32", len(secret), minToken)
		}
		if err != nil {
			c.fault(at, "%v", err)
			continue
		}
		token := AdminToken{s.Name, sha256.Sum256([]byte(secret))}
		if slices.ContainsFunc(tokens, func(t AdminToken) bool { return t.Name == token.Name || t.Hash == token.Hash }) {
			c.fault(at, "the token has the name or the secret of another: choose a new one")
		}
		tokens = append(tokens, token)
	}
	return tokens
}

func (c *checker) peppers(sections []pepperSection) []apikey.Pepper {
	var peppers []apikey.Pepper
	for i, s := range sections {
		at := fmt.Sprintf("keys.peppers[%d]", i)
		if slices.ContainsFunc(peppers, func(p apikey.Pepper) bool { return p.Name() == s.Name }) {
			c.fault(at+".name", "the name of another pepper: choose a new one")
		}
		secret, err := c.loader.neededSecret(s.File, s.Env)
		if err != nil {
			c.fault(at, "%v", err)
			continue
		}
		pepper, err := apikey.NewPepper(s.Name, secret)
		if err != nil {
			c.fault(at, "%v", err)
			continue
		}
		peppers = append(peppers, pepper)
	}
	return peppers
}
