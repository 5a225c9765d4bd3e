package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/web"
)

const (
	defaultServer  = "http://127.0.0.1:9002"
	serverVariable = "TIERGATE_SERVER"
	tokenVariable  = "TIERGATE_ADMIN_TOKEN" //nolint:gosec // its name
	answerTimeout  = 30 * time.Second
	maxAnswer      = 64 << 20 // bytes
)

// adminFlags say which server to ask, and how to print what it answers.
type adminFlags struct {
	server, tokenFile string
	asJSON            bool
}

func (f *adminFlags) add(flags *flag.FlagSet, env environment) {
	server := env.getenv(serverVariable)
	if server == "" {
		server = defaultServer
	}
	flags.StringVar(&f.server, "server", server, "the `URL` of a server's operators' listener; or "+serverVariable)
	flags.StringVar(&f.tokenFile, "token-file", "", "a `file` that holds the token to show; or "+tokenVariable+" holds it")
	flags.BoolVar(&f.asJSON, "json", false, "print JSON")
}

// An adminClient asks a server's admin API.
type adminClient struct {
	server    string
	token     apikey.Key // redacts itself; none: zero
	tokenFrom string     // where the token was found, for people
	http      *http.Client
}

// client checks the flags.
func (f *adminFlags) client(env environment) (*adminClient, error) {
	u, err := url.Parse(f.server)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil {
		return nil, usagef("--server, or %s: want a URL such as %s", serverVariable, defaultServer)
	}
	c := &adminClient{server: strings.TrimRight(f.server, "/"), http: &http.Client{
		Timeout: answerTimeout,
		// The token is for the server that was named.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	return c, c.takeToken(f.tokenFile, env)
}

// takeToken finds the token to show: in the file, or without one in the environment.
func (c *adminClient) takeToken(file string, env environment) error {
	token := env.getenv(tokenVariable)
	c.tokenFrom = tokenVariable
	if file != "" {
		content, err := os.ReadFile(file) //nolint:gosec // whoever calls the program names the file
		if err != nil {
			return fmt.Errorf("read the token: %w: name its file with --token-file", err)
		}
		token, c.tokenFrom = string(content), "the file "+file
	}
	token = strings.TrimSpace(token)
	wrong := func(r rune) bool { return r <= ' ' || r > '~' } // of what a header may hold
	switch {
	case file != "" && (token == "" || strings.ContainsFunc(token, wrong)):
		return fmt.Errorf("the file %s holds no token: want one line of visible ASCII characters, as the server's operator.tokens name it", file)
	case strings.ContainsFunc(token, wrong):
		return fmt.Errorf("%s holds no token: want visible ASCII characters, as the server's operator.tokens name it", tokenVariable)
	case token != "":
		c.token = apikey.Redacting(token)
	}
	return nil
}

// A serverError is a problem that the server answered with.
type serverError web.Problem

// The types of problems that need other words in a terminal.
const (
	problemToken   = "urn:tiergate:problem:token-needed" //nolint:gosec // a name
	problemTooMany = "urn:tiergate:problem:too-many-failures"
	problemNoKey   = "urn:tiergate:problem:no-such-key"
	problemInvalid = "urn:tiergate:problem:invalid-request"
	problemRefused = "urn:tiergate:problem:store-refuses"
	problemEmptied = "urn:tiergate:problem:store-emptied"
)

// changedNothing reports whether it is certain that what was asked for was not done. Of a store
// that does not answer nobody knows, nor where something between answered for the server.
func (e *serverError) changedNothing() bool {
	return e.Status < http.StatusInternalServerError || e.Type == problemRefused || e.Type == problemEmptied
}

// inTerminal says what to do about a problem at the command line, where the server
// speaks of HTTP.
func (c *adminClient) inTerminal(e *serverError, header http.Header) *serverError {
	switch {
	case e.Type == problemToken && c.token.IsZero():
		e.Detail = "put it into " + tokenVariable + ", or name a file that holds it with --token-file"
	case e.Type == problemToken:
		e.Title = "The token is wrong"
		e.Detail = fmt.Sprintf("that of %s is none of those that %s knows: put another into %s, or name a file that holds it with --token-file", c.tokenFrom, c.server, tokenVariable)
	case e.Type == problemTooMany:
		e.Detail = fmt.Sprintf("try again in %s seconds, with another token than that of %s", header.Get("Retry-After"), c.tokenFrom)
	case e.Type == problemNoKey:
		e.Detail = "no key has this ID: `tiergate keys list` lists them"
	}
	return e
}

// Error returns the title and the detail, or every fault on a line of its own.
func (e *serverError) Error() string {
	p := web.Problem(*e)
	if len(e.Errors) == 0 {
		return p.Error()
	}
	lines := []string{e.Title + ":"}
	for _, fault := range e.Errors {
		lines = append(lines, "  "+fault.String())
	}
	return strings.Join(lines, "\n")
}

// ask sends a request, with a body unless it is nil, and returns the JSON of the answer.
func (c *adminClient) ask(ctx context.Context, method, path string, query url.Values, body any) (json.RawMessage, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("write the request as JSON: %w", err)
		}
		content = bytes.NewReader(text)
	}
	target := c.server + web.AdminPath + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	request, err := http.NewRequestWithContext(ctx, method, target, content)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", c.server, err)
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if !c.token.IsZero() {
		request.Header.Set("Authorization", "Bearer "+c.token.Reveal())
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.unreached(err)
	}
	defer response.Body.Close()
	return c.read(response)
}

// read returns a good answer, or what is wrong.
func (c *adminClient) read(response *http.Response) (json.RawMessage, error) {
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w: look whether it was done before you ask again", c.server, err)
	}
	media, _, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	var problem serverError
	switch {
	case err == nil && media == "application/json" && response.StatusCode < http.StatusMultipleChoices && json.Valid(text):
		return text, nil
	case err == nil && media == "application/problem+json" && json.Unmarshal(text, &problem) == nil:
		return nil, c.inTerminal(&problem, response.Header)
	}
	return nil, notOperators(c.server, response.Status+", and not as the admin API does")
}

// unreached is the error of a request that got no answer of HTTP.
func (c *adminClient) unreached(err error) error {
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err
	}
	_, noTLS := errors.AsType[tls.RecordHeaderError](err)
	_, broken := errors.AsType[net.Error](err) // not there, cut off or too slow
	_, stranger := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case noTLS, strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return fmt.Errorf("%s has no TLS: name it with --server as in %s", c.server, defaultServer)
	case !broken && !stranger && !errors.Is(err, context.Canceled):
		// Connected, and then no HTTP/1: net/http has many texts for that.
		return fmt.Errorf("%s gives no HTTP answer, so perhaps it is not the operators' port: name that with --server, as in %s; if it is, look whether a change was made", c.server, defaultServer)
	}
	return fmt.Errorf("cannot reach the server at %s: %w: start it, or name it with --server", c.server, err)
}

// notOperators is the error of a server that is none of ours, or of another port of it.
func notOperators(server, answers string) error {
	return fmt.Errorf("%s is not the operators' port, it answers %s: name that port with --server, as in %s", server, answers, defaultServer)
}

// into decodes an answer.
func into[T any](answer json.RawMessage) (T, error) {
	var v T
	if err := json.Unmarshal(answer, &v); err != nil {
		return v, fmt.Errorf("read the answer: %w: is the server of another version?", err)
	}
	return v, nil
}

// printAnswer prints an answer: as it is, or laid out for people.
func printAnswer[T any](f adminFlags, env environment, answer json.RawMessage, layOut func(io.Writer, T)) error {
	if f.asJSON {
		return printJSON(env.stdout, answer)
	}
	v, err := into[T](answer)
	if err != nil {
		return err
	}
	layOut(env.stdout, v)
	return nil
}

// parseKey reads the flags of a command about one key, and returns the path of that key,
// or of something below it.
func parseKey(flags *flag.FlagSet, args []string, env environment, below string) (string, error) {
	ids, err := parseArgs(flags, args, env, "KEY-ID")
	if err != nil {
		return "", err
	}
	return keyPath(ids[0], below)
}

// keyPath is the path of a key, or of something below it. What cannot be an ID may be a
// secret, and is not repeated.
func keyPath(id, below string) (string, error) {
	if err := apikey.CheckID(id); err != nil {
		return "", usagef("KEY-ID: %v: keys list shows IDs", err)
	}
	return "/keys/" + id + below, nil
}
