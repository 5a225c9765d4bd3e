package store

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

// outcome is what is known of a call that failed.
type outcome int

const (
	inDoubt  outcome = iota // it may have been carried out, or may yet be
	answered                // Redis answered with an error, and did nothing
	notSent                 // nobody was told of it
)

// A callError is why a call of Redis failed, or an operation that went in it with others.
type callError struct {
	outcome outcome
	err     error
	call    *sharedCall
}

// A sharedCall is one call that several operations went in.
type sharedCall struct{ parts atomic.Uint32 }

// first reports whether it is asked of a part of Redis for the first time.
func (c *sharedCall) first(part int) bool {
	bit := uint32(1) << part
	return c.parts.Or(bit)&bit == 0
}

// firstOf reports whether an error is the first of its call for a part.
func firstOf(err error, part int) bool {
	var e *callError
	return !errors.As(err, &e) || e.call.first(part)
}

// Error implements error.
func (e *callError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *callError) Unwrap() error { return e.err }

// outcomeUnknown reports whether a call that failed may have been carried out, or may yet
// be: it was sent, and no answer came.
func outcomeUnknown(err error) bool {
	var e *callError
	return err != nil && (!errors.As(err, &e) || e.outcome == inDoubt)
}

// refusedByRedis reports whether Redis has answered a call with an error, and did nothing.
func refusedByRedis(err error) bool {
	var e *callError
	return errors.As(err, &e) && e.outcome == answered
}

// failed returns the error of a call that was sent, or not.
func failed(err error, sent bool) *callError {
	e := &callError{outcome: inDoubt, err: advised(err), call: new(sharedCall)}
	var op *net.OpError
	switch {
	case !sent, errors.As(err, &op) && (op.Op == "dial" || op.Op == "write"), // part of a command is none
		errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrPoolExhausted), errors.Is(err, redis.ErrClosed):
		e.outcome = notSent // where MOVED was followed, the first server did nothing either
	case didNothing(err):
		e.outcome = answered
	}
	return e
}

// failedAmongOthers returns the error of a call that was sent, or not, in one pipeline with
// others: a write that failed may have sent all of it.
func failedAmongOthers(err error, sent bool, call *sharedCall) error {
	e := failed(err, sent)
	e.call = call
	var op *net.OpError
	if sent && errors.As(err, &op) && op.Op == "write" {
		e.outcome = inDoubt
	}
	return e
}

// failedInScript returns the error of an order or a settlement that failed by itself.
func failedInScript(text string, call *sharedCall) error {
	e := failed(scriptError(text), true)
	e.call = call
	return e
}

// didNothing reports whether an error is Redis' answer, and one that it gives before
// anything is done. A script that fails half-way has done half.
func didNothing(err error) bool {
	var answer redis.Error
	if !errors.As(err, &answer) {
		return false
	}
	if !strings.Contains(answer.Error(), "script") {
		return true
	}
	for _, code := range []string{"OOM", "READONLY", "MISCONF", "NOREPLICAS", "BUSY", "NOSCRIPT"} { // before the first write of a script
		if hasCode(answer, code) {
			return true
		}
	}
	return false
}

// hasCode reports whether Redis' answer begins with a code, or, as before version 7, has
// one within the words of a script that failed.
func hasCode(answer error, code string) bool {
	return redis.HasErrorPrefix(answer, code+" ") || strings.Contains(answer.Error(), " -"+code+" ")
}

// advice says what to do about answers of Redis.
func advice() [][2]string {
	return [][2]string{
		{"NOAUTH", "Redis wants a password: set store.redis.password_file or password_env"},
		{"Protocol error: unauthenticated", "Redis wants a password: set store.redis.password_file or password_env"},
		{"AUTH <password> called without any password configured", "Redis wants no password: leave store.redis.password_file and password_env out, or give the default user one"},
		{"DENIED", "Redis is in protected mode and answers its own machine only: give it a password, and set store.redis.password_file or password_env"},
		{"WRONGPASS", "see to store.redis.username and the password of store.redis.password_file or password_env, or those of store.redis.sentinel"},
		{"NOPERM", "give the user the rights that docs/configuration.md lists, for keys that begin with store.redis.key_prefix"},
		{"OOM", "Redis is full: raise its maxmemory, and leave maxmemory-policy at noeviction"},
		{"READONLY", "the server is a replica: name the primary in store.redis.address, or the Sentinels in store.redis.sentinel"},
		{"LOADING", "Redis reads its data from disk: it answers when it has done so"},
		{"MISCONF", "Redis cannot save to its disk: see its log"},
		{"NOREPLICAS", "Redis has fewer replicas than its min-replicas-to-write: start them"},
		{"MASTERDOWN", "the server is a replica whose primary is away: name the primary"},
		{"CROSSSLOT", "the server is one of a Cluster: name it in store.redis.cluster.addresses"},
		{"CLUSTERDOWN", "servers of the Cluster are away, or slots have no server: see CLUSTER INFO"},
		{"TRYAGAIN", "the slot is moving to another server: it answers when that is done"},
		{"BUSY", "a script or a function of somebody else keeps Redis busy: SCRIPT KILL or FUNCTION KILL ends it"},
		{"MOVED", "the server is one of a Cluster: name it in store.redis.cluster.addresses"},
		{"The user executing the script can't run", "give the user the rights that docs/configuration.md lists"},
		{"ACL failure in script", "give the user the rights that docs/configuration.md lists"}, // since Redis 7.2
		{"This instance has cluster support disabled", "it is no Cluster: name it in store.redis.address"},
		{"max number of clients reached", "raise its maxclients, or lower store.redis.pool_size"},
	}
}

// aboutRedis returns what to do about an answer of Redis that says how Redis is, and not
// what is wrong with the call; empty: it is another.
func aboutRedis(err error) string {
	var answer redis.Error
	if !errors.As(err, &answer) {
		return ""
	}
	known, _ := knownAnswer(answer)
	return known[1]
}

// knownAnswer returns the line of advice about an answer of Redis, if there is one.
func knownAnswer(answer redis.Error) (line [2]string, ok bool) {
	for _, a := range advice() {
		if redis.HasErrorPrefix(answer, a[0]) || hasCode(answer, a[0]) {
			return a, true
		}
	}
	return line, false
}

// moving reports whether Redis has refused a call because the slot of its keys is on its
// way to another server: others of the same server are answered.
func moving(err error) bool { return errors.As(err, new(redis.Error)) && redis.IsTryAgainError(err) }

// An advisedError is one with what to do about it.
type advisedError struct {
	err  error
	what string
}

// Error implements error.
func (e *advisedError) Error() string { return e.err.Error() + ": " + e.what }

// Unwrap returns the cause.
func (e *advisedError) Unwrap() error { return e.err }

// hasAdvice reports whether an error says what to do about it.
func hasAdvice(err error) bool { return errors.As(err, new(*advisedError)) }

// advised adds to an error what to do about it.
func advised(err error) error {
	what := aboutRedis(err)
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	var op *net.OpError
	switch {
	case what != "":
	case errors.As(err, &authority):
		what = "set store.redis.tls.ca_file to the roots of the server's certificate"
	case errors.As(err, &host):
		what = "set store.redis.tls.server_name to a name in the server's certificate"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		what = "renew the server's certificate, or set the clock of this machine right"
	case errors.As(err, &record):
		what = "the server does not speak TLS there: see to the port, or to store.redis.tls.enabled"
	case errors.As(err, &op) && op.Op == "remote error": // an alert by TLS
		what = "see to store.redis.tls.cert_file and key_file, which Redis checks by its tls-ca-cert-file"
	default:
		return err
	}
	return &advisedError{err, what}
}
