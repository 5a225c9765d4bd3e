package main

import (
	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/config"
	"github.com/tiergate/tiergate/internal/envoyapi"
	"github.com/tiergate/tiergate/internal/web"
)

// use takes up a changed configuration.
func (s *server) use(c config.Reload) {
	if s.stores.useAccess != nil {
		s.stores.useAccess(c.Redis)
	}
	s.noteOnFailure(c.Plans)
	s.metrics.capacity.use(c.Pools)
	s.directory.use(c)
	s.gate.Use(s.settings(c))
	s.customers.Use(s.accounts(c))
	s.admin.Use(s.adminAccounts(c))
	s.tls.use(c.Listener)
}

// keyring is the file's keys before the store's.
func (s *server) keyring(c config.Reload) apikey.Keyring {
	return apikey.Keyring{File: c.Directory, Stored: s.directory.stored}
}

// accounts hands the configuration on to the customers' API.
func (s *server) accounts(c config.Reload) *web.Accounts {
	return &web.Accounts{
		KeyHeaders: c.KeyHeaders, Keys: s.keyring(c), AllowDemoKeys: c.AllowDemoKeys, Plans: c.Plans, UnlimitedText: c.Unlimited.Text,
	}
}

// adminAccounts hands it on to the admin API.
func (s *server) adminAccounts(c config.Reload) *web.AdminAccounts {
	tokens := make([]web.AdminToken, len(c.AdminTokens))
	for i, t := range c.AdminTokens {
		tokens[i] = web.AdminToken{Name: t.Name, Hash: t.Hash}
	}
	return &web.AdminAccounts{
		Tokens: tokens, Keys: s.keyring(c), Plans: c.Plans, Resources: c.Resources, Peppers: c.Peppers, AllowDemoKeys: c.AllowDemoKeys,
	}
}

// settings hands the configuration on to the gate.
func (s *server) settings(c config.Reload) *envoyapi.Settings {
	return &envoyapi.Settings{
		KeyHeaders:         c.KeyHeaders,
		ForwardCredentials: c.ForwardCredentials,
		Identity:           envoyapi.Identity{KeyID: envoyapi.MetadataPath(c.Identity.KeyID), Tier: envoyapi.MetadataPath(c.Identity.Tier)},
		Resources:          envoyapi.NewClassifier(c.Resources),
		Plans:              c.Plans,
		Pools:              c.Pools,
		Keys:               s.keyring(c),
		AllowDemoKeys:      c.AllowDemoKeys,
		TicketKey:          s.ticketKey,
		OmitUnlimited:      c.Unlimited.Omit,
		UnlimitedText:      c.Unlimited.Text,
		PerMetric:          c.PerMetricHeaders,
		IETF:               c.IETFHeaders,
		RateLimit: envoyapi.RateLimitSettings{
			Domain: c.RateLimit.Domain, SettlementDomain: c.RateLimit.SettlementDomain, HitsMetric: c.RateLimit.Hits,
			NegativeHits: c.RateLimit.NegativeHits, LimitOverride: c.RateLimit.LimitOverride, AllowUnknown: c.RateLimit.AllowUnknown,
			MaxDescriptors: c.RateLimit.MaxDescriptors,
			Entries: envoyapi.Entries{
				APIKey: c.RateLimit.APIKey, Resource: c.RateLimit.Resource, Path: c.RateLimit.Path, Priority: c.RateLimit.Priority,
				KeyID: c.RateLimit.KeyID, Tier: c.RateLimit.Tier, FactPrefix: c.RateLimit.FactPrefix,
			},
		},
		Tokens: envoyapi.TokenSettings{
			Rules: c.Tokens.Rules, Models: envoyapi.NewModelWeights(c.Tokens.Models), CachedInput: c.Tokens.CachedInput,
			Keep: c.Tokens.Keep, SettleByAccessLog: c.Tokens.SettleByAccessLog, SettleByRateLimit: c.Tokens.SettleByRateLimit,
			RefundStatuses: c.Tokens.RefundStatuses, RefundCached: c.Tokens.RefundCached, RefundShare: c.Tokens.RefundShare,
		},
	}
}
