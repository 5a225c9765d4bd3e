package web

import (
	"errors"
	"strings"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// series answers with the usage of a key, in the shape of the customers' GET /v1/usage
// and for the same parameters.
func (a *Admin) series(c *call) (any, error) {
	wanted, err := parseUsageRequest(c.URL.RawQuery, c.now)
	if err != nil {
		return nil, wrongParameter(err)
	}
	id, unknown := c.account()
	if id == "" {
		return nil, unknown
	}
	points, err := a.usage.Series(c.Context(), id, wanted.Query)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what and why, for the answer
	}
	if len(points) == 0 && unknown != nil {
		return nil, unknown
	}
	view := wanted.view(points)
	view.KeyID = id
	return view, nil
}

// account returns whose usage is asked for. It may be an ID that is not on record any more, or
// never was, as where another filter says who asks: unknown then is what to answer if nothing
// was counted for it. Where it cannot be such an ID it is empty.
func (c *call) account() (id string, unknown error) {
	id = c.PathValue("id")
	if _, unknown = c.record(); unknown == nil {
		return id, nil
	}
	if !errors.Is(unknown, apikey.ErrUnknown) || !apikey.ValidID(id) {
		return "", unknown
	}
	return id, unknown
}

// wrongParameter is the problem of parameters that parseSeries cannot read.
func wrongParameter(err error) *Problem {
	parameter, wrong, named := strings.Cut(err.Error(), ": ")
	if !named {
		parameter, wrong = "", err.Error()
	}
	return invalid([]Fault{{parameter, wrong}})
}

// limits answers with every limit of a key, and what is used of it, in the shape of the
// customers' GET /v1/limits.
func (a *Admin) limits(c *call) (any, error) {
	if err := c.query().end(); err != nil {
		return nil, err
	}
	r, err := c.record()
	if err != nil {
		return nil, err
	}
	plan := c.accounts.Plans[r.Tier]
	if plan == nil {
		return nil, problem(kindNoTier, "the configuration has no tier "+r.Tier+": add it, or give the key another")
	}
	s, err := a.limiter.States(c.Context(), quota.Request{Account: r.ID, Tier: plan, Overrides: r.Overrides}, c.now)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what and why, for the answer
	}
	return viewOfLimits(r, standing{s, r.Granted(plan.Tier.Priority)}), nil
}

// refusals answers with the latest refusals of a key, the latest first.
func (a *Admin) refusals(c *call) (any, error) {
	if err := c.query().end(); err != nil {
		return nil, err
	}
	id, unknown := c.account()
	if id == "" {
		return nil, unknown
	}
	refusals, err := a.usage.Refusals(c.Context(), id)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what and why, for the answer
	}
	if len(refusals) == 0 && unknown != nil {
		return nil, unknown
	}
	return viewOfRefusals(id, refusals), nil
}
