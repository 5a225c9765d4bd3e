package web

import (
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/apierror"
)

// operatorPages is the operators' dashboard. What it shows its scripts ask of the admin
// API, with the session of whoever has signed in.
type operatorPages struct {
	admin  *Admin
	frames map[string]*template.Template // by view
	signIn *template.Template
	assets map[string]asset
}

// operatorViews are the pages.
func operatorViews() []string { return []string{"overview", "keys", "key"} }

func newOperatorPages(a *Admin) (*operatorPages, error) {
	p := &operatorPages{admin: a, frames: map[string]*template.Template{}}
	var err error
	if p.assets, err = newAssets(append(sharedAssets(), "operator.css", "operator.js", "overview.js", "reasons.js", "keys.js", "key.js", "revoke.js")...); err != nil {
		return nil, err
	}
	for _, view := range operatorViews() {
		if p.frames[view], err = template.ParseFS(page, "page/operator.html", "page/usage.html", "page/"+view+".html"); err != nil {
			return nil, fmt.Errorf("read a page of the operators' dashboard: %w", err)
		}
	}
	if p.signIn, err = template.ParseFS(page, "page/operator-signin.html"); err != nil {
		return nil, fmt.Errorf("read the operators' sign-in page: %w", err)
	}
	return p, nil
}

// handler serves / and all below /dashboard.
func (p *operatorPages) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", http.RedirectHandler(dashboardPath, http.StatusSeeOther))
	mux.HandleFunc("GET "+dashboardPath, p.view("overview"))
	mux.Handle("GET "+dashboardPath+"/{$}", http.RedirectHandler(dashboardPath, http.StatusSeeOther))
	mux.HandleFunc("GET "+dashboardPath+"/keys", p.view("keys"))
	mux.HandleFunc("GET "+dashboardPath+"/keys/{id}", p.view("key"))
	mux.HandleFunc("GET "+signInPath, p.askForToken)
	mux.HandleFunc("POST "+sessionPath, p.open)
	mux.Handle("GET "+sessionPath, http.RedirectHandler(signInPath, http.StatusSeeOther)) // from the address bar after a failed sign-in
	mux.HandleFunc("POST "+dashboardPath+"/signout", func(w http.ResponseWriter, r *http.Request) {
		p.admin.sessions.end(w, r)
		http.Redirect(w, r, signInPath, http.StatusSeeOther)
	})
	mux.Handle("GET "+dashboardPath+"/assets/", http.StripPrefix(dashboardPath+"/assets/", serveAssets(p.assets)))
	own := http.NewCrossOriginProtection()
	own.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		p.signInPage(w, http.StatusForbidden, signInView{Problem: "That form was another site's. Please sign in here.", Form: true})
	}))
	return secured(own.Handler(mux))
}

// A frame is what is written into a page on the server.
type frame struct {
	View    string // one of operatorViews
	Who     string // the name of the token
	SignOut bool   // there is a session that can be ended
}

// view shows a page to those who may see it, and leads others to the sign-in.
func (p *operatorPages) view(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		accounts := p.admin.accounts.Load()
		who, problem := p.admin.who(r, accounts, p.admin.now())
		switch {
		case problem == nil:
			w.Header().Set("Content-Type", htmlType)
			_ = p.frames[name].ExecuteTemplate(w, "operator.html", frame{name, who, len(accounts.Tokens) > 0}) // nobody to tell if the caller is gone
		case problem.Status == http.StatusUnauthorized:
			to := signInPath
			if p.admin.sessions.sent(r) {
				p.admin.sessions.end(w, r)
				to += "?over"
			}
			http.Redirect(w, r, to, http.StatusSeeOther)
		default:
			p.refuse(w, problem)
		}
	}
}

// A signInView is what the sign-in page says.
type signInView struct {
	Problem string // text for people; empty: there is none
	Form    bool   // a token can be entered
}

func (p *operatorPages) signInPage(w http.ResponseWriter, status int, view signInView) {
	w.Header().Set("Content-Type", htmlType)
	w.WriteHeader(status)
	_ = p.signIn.Execute(w, view) // nobody to tell if the caller is gone
}

// refuse says why there is no page.
func (p *operatorPages) refuse(w http.ResponseWriter, problem *Problem) {
	view := signInView{Problem: sentence(problem), Form: problem.Status != http.StatusForbidden}
	if problem.retryAfter > 0 {
		seconds := strconv.FormatInt(apierror.Up(problem.retryAfter, time.Second), 10)
		w.Header().Set("Retry-After", seconds)
		view.Problem = "Too many wrong tokens. Please try again in " + seconds + " seconds."
	}
	p.signInPage(w, problem.Status, view)
}

// sentence writes a problem for people.
func sentence(p *Problem) string { return p.Error() + "." }

// askForToken shows the sign-in, where there is a token to sign in with.
func (p *operatorPages) askForToken(w http.ResponseWriter, r *http.Request) {
	accounts := p.admin.accounts.Load()
	if len(accounts.Tokens) == 0 {
		p.withoutTokens(w, r)
		return
	}
	view := signInView{Form: true}
	if r.URL.Query().Has("over") {
		view.Problem = "Your session is over. Please sign in again."
	}
	p.signInPage(w, http.StatusOK, view)
}

// withoutTokens leads those on this machine to the dashboard: they need not sign in.
func (p *operatorPages) withoutTokens(w http.ResponseWriter, r *http.Request) {
	if problem := p.admin.local(r); problem != nil {
		p.refuse(w, problem)
		return
	}
	http.Redirect(w, r, dashboardPath, http.StatusSeeOther)
}

// open begins a session for the token in the form. Wrong ones count like those sent to
// the admin API.
func (p *operatorPages) open(w http.ResponseWriter, r *http.Request) {
	accounts, now := p.admin.accounts.Load(), p.admin.now()
	if len(accounts.Tokens) == 0 {
		p.withoutTokens(w, r)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		p.signInPage(w, http.StatusBadRequest, signInView{Problem: "That form cannot be read. Please try again.", Form: true})
		return
	}
	secret := strings.TrimSpace(r.PostForm.Get("token")) // never from the URL
	token, problem := p.admin.holder(secret, network(r.RemoteAddr), accounts, now)
	switch {
	case problem != nil && problem.Status != http.StatusUnauthorized:
		p.refuse(w, problem)
	case problem != nil && secret == "":
		p.signInPage(w, http.StatusUnauthorized, signInView{Problem: "Please enter a token.", Form: true})
	case problem != nil:
		p.signInPage(w, http.StatusUnauthorized, signInView{Problem: "That is none of the configured tokens.", Form: true})
	default:
		if err := p.admin.sessions.begin(w, r, token); err != nil {
			p.signInPage(w, http.StatusInternalServerError, signInView{Problem: "You could not be signed in: " + err.Error() + ".", Form: true})
			return
		}
		http.Redirect(w, r, dashboardPath, http.StatusSeeOther)
	}
}
