package apiserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"gopkg.in/natefinch/lumberjack.v2"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/apiserver/pkg/audit/policy"
	pluginlog "k8s.io/apiserver/plugin/pkg/audit/log"
)

// The audit log is rotated: its files are readable by their owner only, and
// together bounded. Upstream's recommendation.
const (
	auditMegabytes = 100
	auditFiles     = 10
)

// audit logs requests by a policy, if there is one.
func (s *Server) audit(c Config) error {
	if c.AuditPolicy == "" && c.AuditLog == "" {
		return nil
	}
	if c.AuditPolicy == "" || c.AuditLog == "" {
		return errors.New("audit: give both a policy and a log file, or neither")
	}
	rules, err := policy.LoadPolicyFromFile(c.AuditPolicy)
	if err != nil {
		return fmt.Errorf("audit policy: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(c.AuditLog), 0o700); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	// Opened here once, so that a log that can't be written is an error at start.
	f, err := os.OpenFile(c.AuditLog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	if err := errors.Join(f.Chmod(0o600), f.Close()); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	s.auditLog = &lumberjack.Logger{Filename: c.AuditLog, MaxSize: auditMegabytes, MaxBackups: auditFiles}
	s.config.AuditBackend = pluginlog.NewBackend(s.auditLog, pluginlog.FormatJson, auditv1.SchemeGroupVersion)
	s.config.AuditPolicyRuleEvaluator = policy.NewPolicyRuleEvaluator(rules)
	return nil
}

func (s *Server) closeAudit() {
	if s.auditLog != nil {
		if err := s.auditLog.Close(); err != nil {
			s.log.Error("closing the audit log", "err", err)
		}
	}
}
