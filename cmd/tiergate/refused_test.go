package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/envoyapi"
)

// TestCodesAreTold: the decision log and the metric tell the reasons of a 401 apart.
func TestCodesAreTold(t *testing.T) {
	t.Parallel()
	s := startServer(t, "", "log.level=debug")
	revoked, expired := apikey.Redacting("sk-revoked"), apikey.Redacting("sk-expired")
	s.directory.apply([]apikey.Record{
		{ID: "key_revoked", Hash: revoked.Hash(), Tier: "pro", Revoked: true, Revision: 1},
		{ID: "key_expired", Hash: expired.Hash(), Tier: "pro", Expires: time.Now().Add(-time.Hour), Revision: 1},
	}, true)
	conn := dial(t, s.start.GRPC.Address)
	for secret, code := range map[string]string{
		"": "missing_api_key", "sk-of-nobody": "invalid_api_key", "sk-revoked": "revoked_api_key", "sk-expired": "expired_api_key", "sk-demo-pro": "",
	} {
		answers(t, conn, secret, nil)
		if n := s.metric(t, "tiergate_decisions_total", cmp.Or(code, "allowed")); n != 1 {
			t.Errorf("%q: %v are counted", code, n)
		}
		if n := s.log.count("outcome=unauthenticated code=" + code + " "); code != "" && n != 1 {
			t.Errorf("%q: %d lines in the log", code, n)
		}
	}
}

// TestRefusalsAreLogged: at debug each with its error; what failed at warn too, once a
// minute, unless the caller had gone.
func TestRefusalsAreLogged(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer
	o := newObserver(newMetrics(), nil, slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug})))
	at := afternoon()
	for _, c := range []struct {
		after   time.Duration
		outcome envoyapi.Outcome
		err     error
		want    string
	}{
		{0, envoyapi.Failed, context.Canceled, "DEBUG"},
		{0, envoyapi.Failed, errors.New("no store"), "WARN"},
		{time.Minute - 1, envoyapi.Failed, errors.New("no store"), "DEBUG"},
		{time.Minute, envoyapi.Limited, nil, "DEBUG"},
		{time.Minute, envoyapi.Failed, errors.New("no tier"), "WARN"},
		{-time.Hour, envoyapi.Failed, errors.New("the clock was set back"), "WARN"},
	} {
		text.Reset()
		o.Judged(t.Context(), envoyapi.Verdict{Outcome: c.outcome, Err: c.err, At: at.Add(c.after)}, 0)
		line := text.String()
		if !strings.Contains(line, "level="+c.want+" msg=refused") || (c.err != nil) != strings.Contains(line, "error=") || strings.Count(line, "\n") != 1 {
			t.Errorf("%s of %v after %s: %s", c.outcome, c.err, c.after, line)
		}
	}
}

// TestUnknownResources: a resource that a route or a descriptor names and that is not
// configured is counted for each request, and named in the log once a minute, cut.
func TestUnknownResources(t *testing.T) {
	t.Parallel()
	s := startServer(t, "")
	conn := dial(t, s.start.GRPC.Address)
	name := "chatt \"\n" + strings.Repeat("x", 200)
	for _, resource := range []string{"chat", "default", "", name, name} {
		_, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			ContextExtensions: map[string]string{"resource": resource},
			Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
				Method: "POST", Path: "/v1/images/1", Headers: map[string]string{"x-api-key": "sk-demo-pro"},
			}},
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := rlsv3.NewRateLimitServiceClient(conn).ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: "tiergate", Descriptors: []*ratelimitv3.RateLimitDescriptor{
		{Entries: []*ratelimitv3.RateLimitDescriptor_Entry{{Key: "api_key", Value: "sk-demo-pro"}, {Key: "resource", Value: "imagess"}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if n := s.metric(t, "tiergate_unknown_resources_total", ""); n != 3 {
		t.Errorf("%v are counted", n)
	}
	const told = "level=WARN msg=\"a route or a descriptor names a resource that is not configured"
	if s.log.count(told) != 2 || s.log.count("resource=imagess ") != 1 || s.log.count(`resource="chatt \"\n`+strings.Repeat("x", 64-len("chatt \"\n"))+`" used=images`) != 1 {
		t.Error("the log does not name each resource once, or not as it should")
	}
}

// TestCallsThatAreNoQuestion: a call of the rate limit service that is answered with
// INVALID_ARGUMENT, of which Envoy says nothing, is counted, and in the log once a minute.
func TestCallsThatAreNoQuestion(t *testing.T) {
	t.Parallel()
	s := startServer(t, "")
	client := rlsv3.NewRateLimitServiceClient(dial(t, s.start.GRPC.Address))
	key := []*ratelimitv3.RateLimitDescriptor_Entry{{Key: "api_key", Value: "sk-demo-pro"}}
	for _, r := range []*rlsv3.RateLimitRequest{
		{Domain: "edge"},
		{Domain: "edge", Descriptors: []*ratelimitv3.RateLimitDescriptor{{Entries: key}}},
		{Domain: "tiergate-settle"},
		{Domain: "tiergate", Descriptors: []*ratelimitv3.RateLimitDescriptor{{Entries: key, IsNegativeHits: true}}},
		{Domain: "tiergate", Descriptors: make([]*ratelimitv3.RateLimitDescriptor, 65)},
	} {
		if _, err := client.ShouldRateLimit(t.Context(), r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, want INVALID_ARGUMENT", r, err)
		}
	}
	if n := s.metric(t, "tiergate_invalid_calls_total", ""); n != 5 {
		t.Errorf("%v are counted", n)
	}
	const told = "level=WARN msg=\"a call of the rate limit service is answered with INVALID_ARGUMENT, and Envoy lets the request pass or not as failure_mode_deny says: mend its filter, or the setting\" error="
	for _, problem := range []string{
		`"domain \"edge\" is not configured: want \"tiergate\", as in ratelimit.domain"`,
		`"domain \"tiergate-settle\" settles nothing: add ratelimit to tokens.settle_by"`,
		`"is_negative_hits is not accepted here: set ratelimit.negative_hits"`,
		`"the call has 65 descriptors: want at most 64, as in ratelimit.max_descriptors"`,
	} {
		if n := s.log.count(told + problem); n != 1 {
			t.Errorf("%d lines in the log have %s", n, problem)
		}
	}
}

// TestSeldom: what is told often keeps nothing else from being told, and no more names are
// kept than there is room for.
func TestSeldom(t *testing.T) {
	t.Parallel()
	var s seldom
	at := afternoon()
	for n := range mostToldApart {
		if name := strconv.Itoa(n); !s.now(name, at) || s.now(name, at.Add(quietFor-1)) {
			t.Errorf("%s: want it once in %s", name, quietFor)
		}
	}
	if s.now("one more", at) || !s.now("one more", at.Add(quietFor)) || len(s.last) != 1 {
		t.Errorf("%d names: want one more when the others are old", len(s.last))
	}
}
