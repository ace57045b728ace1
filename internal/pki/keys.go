package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/apiserver/pkg/storage/value/encrypt/aes"
)

// An accountKey signs service account tokens, or only verifies them: then
// private is nil.
type accountKey struct {
	private crypto.Signer
	public  crypto.PublicKey
}

// newAccountKeys puts a new key before the old ones, which go on verifying.
func newAccountKeys(old []accountKey) ([]accountKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	keys := []accountKey{{key, key.Public()}}
	for _, k := range old {
		keys = append(keys, accountKey{nil, k.public})
	}
	return keys, nil
}

func encodeAccountKeys(keys []accountKey) ([]byte, error) {
	var b bytes.Buffer
	for _, k := range keys {
		if k.private != nil {
			text, err := encodeKey(k.private)
			if err != nil {
				return nil, err
			}
			b.Write(text)
			continue
		}
		der, err := x509.MarshalPKIXPublicKey(k.public)
		if err != nil {
			return nil, err
		}
		b.Write(pem.EncodeToMemory(&pem.Block{Type: publicBlock, Bytes: der}))
	}
	return b.Bytes(), nil
}

func parseAccountKeys(text []byte) ([]accountKey, error) {
	blocks, err := parsePEM(text)
	if err != nil {
		return nil, err
	}
	var keys []accountKey
	for _, b := range blocks {
		switch b.Type {
		case keyBlock:
			k, err := parseKey(b.Bytes)
			if err != nil {
				return nil, err
			}
			keys = append(keys, accountKey{k, k.Public()})
		case publicBlock:
			k, err := x509.ParsePKIXPublicKey(b.Bytes)
			if err != nil {
				return nil, err
			}
			keys = append(keys, accountKey{nil, k})
		default:
			return nil, fmt.Errorf("a %s where a key should be", b.Type)
		}
	}
	if keys[0].private == nil {
		return nil, errors.New("the first key must be a private one: it signs")
	}
	return keys, nil
}

// ServiceAccountKey signs service account tokens.
func (a *Authority) ServiceAccountKey() crypto.Signer {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.accounts[0].private
}

// ServiceAccountPublicKeys verify them: the signing key's first, then those of
// keys that signed before. They are what upstream's token authenticator takes.
func (a *Authority) ServiceAccountPublicKeys() []any {
	a.mu.Lock()
	defer a.mu.Unlock()
	var keys []any
	for _, k := range a.accounts {
		keys = append(keys, k.public)
	}
	return keys
}

// An EncryptionKey encrypts what is stored.
type EncryptionKey struct {
	Name   string `json:"name"`
	Secret []byte `json:"secret"` // 32 bytes
}

// String names the key and keeps the secret.
func (k EncryptionKey) String() string { return "key " + k.Name }

// GoString is String.
func (k EncryptionKey) GoString() string { return k.String() }

const secretSize = 32

type encryptionDocument struct {
	Version int             `json:"version"`
	Keys    []EncryptionKey `json:"keys"`
}

// newEncryptionKeys puts a new key before the old ones, which go on reading.
func newEncryptionKeys(old []EncryptionKey, now time.Time) ([]EncryptionKey, error) {
	k := EncryptionKey{Name: now.UTC().Format("20060102150405"), Secret: make([]byte, secretSize)}
	if _, err := rand.Read(k.Secret); err != nil {
		return nil, err
	}
	for slices.ContainsFunc(old, func(o EncryptionKey) bool { return o.Name == k.Name }) {
		k.Name += "x"
	}
	return append([]EncryptionKey{k}, old...), nil
}

func encodeEncryptionKeys(keys []EncryptionKey) ([]byte, error) {
	b, err := json.MarshalIndent(encryptionDocument{1, keys}, "", "  ")
	return append(b, '\n'), err
}

func parseEncryptionKeys(text []byte) ([]EncryptionKey, error) {
	var doc encryptionDocument
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		// The decoder's words may quote what it read.
		return nil, errors.New("it isn't the JSON that was written")
	}
	if dec.More() {
		return nil, errors.New("something follows the keys")
	}
	if doc.Version != 1 {
		return nil, fmt.Errorf("version %d is of another unipod; this one reads 1", doc.Version)
	}
	if len(doc.Keys) == 0 {
		return nil, errors.New("no key in it")
	}
	names := map[string]bool{}
	for i, k := range doc.Keys {
		switch {
		case k.Name == "" || strings.ContainsAny(k.Name, ": \n"):
			return nil, fmt.Errorf("key %d has no usable name", i+1)
		case names[k.Name]:
			return nil, fmt.Errorf("key %q is there twice", k.Name)
		case len(k.Secret) != secretSize:
			return nil, fmt.Errorf("key %q has %d bytes, not %d", k.Name, len(k.Secret), secretSize)
		}
		names[k.Name] = true
	}
	return doc.Keys, nil
}

// Transformer encrypts what is stored and decrypts what was, by the keys there
// are now: AES-GCM with a key derived for each value, so that the number of
// writes is without bound. It reads nothing that isn't encrypted: who could
// put plain text into the store could put Secrets there.
func (a *Authority) Transformer() (value.Transformer, error) {
	a.mu.Lock()
	keys := slices.Clone(a.secrets)
	a.mu.Unlock()
	var each []value.PrefixTransformer
	for _, k := range keys {
		t, err := aes.NewHKDFExtendedNonceGCMTransformer(k.Secret)
		if err != nil {
			return nil, fmt.Errorf("encryption at rest, %s: %w", k, err)
		}
		each = append(each, value.PrefixTransformer{Prefix: []byte("unipod:enc:aesgcm:v1:" + k.Name + ":"), Transformer: t})
	}
	return value.NewPrefixTransformers(errors.New("it is encrypted by a key that isn't in "+encryptionFile+", or not at all"), each...), nil
}

// RotateServiceAccountKey makes a new signing key; tokens of the old ones stay
// valid.
func (a *Authority) RotateServiceAccountKey() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	keys, err := newAccountKeys(a.accounts)
	if err != nil {
		return err
	}
	text, err := encodeAccountKeys(keys)
	if err != nil {
		return err
	}
	if err := a.save(accountFile, text); err != nil {
		return err
	}
	a.accounts = keys
	return nil
}

// RotateEncryptionKey makes a new key for what is written from the next
// [Authority.Transformer] on; the old ones go on reading.
func (a *Authority) RotateEncryptionKey() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	keys, err := newEncryptionKeys(a.secrets, a.clock.Now())
	if err != nil {
		return err
	}
	return a.setEncryptionKeys(keys)
}

// setEncryptionKeys puts other keys in force once they are saved. a.mu is held.
func (a *Authority) setEncryptionKeys(keys []EncryptionKey) error {
	text, err := encodeEncryptionKeys(keys)
	if err != nil {
		return err
	}
	if err := a.save(encryptionFile, text); err != nil {
		return err
	}
	a.secrets = keys
	return nil
}

// OldEncryptionKeys is how many keys there are that only read.
func (a *Authority) OldEncryptionKeys() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.secrets) - 1
}

// DropOldEncryptionKeys leaves only the key that writes: for who knows that
// nothing is encrypted by another any more.
func (a *Authority) DropOldEncryptionKeys() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.setEncryptionKeys(slices.Clone(a.secrets[:1]))
}

// save replaces a file of an authority that has files.
func (a *Authority) save(name string, text []byte) error {
	if a.dir == "" {
		return nil
	}
	if err := WriteFile(filepath.Join(a.dir, name), text); err != nil {
		return fmt.Errorf("writing the keys: %w", err)
	}
	return nil
}
