package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"
)

const (
	caName    = "unipod-ca"
	frontName = "unipod-front-proxy-ca"

	certBlock   = "CERTIFICATE"
	keyBlock    = "PRIVATE KEY"
	publicBlock = "PUBLIC KEY"
)

const (
	year = 365 * 24 * time.Hour
	// rootLife is how long an authority's certificate is valid.
	rootLife = 10 * year
	// leafLife is how long what it signs is valid.
	leafLife = year
	// overlap is how long before its end an authority gets a successor, which
	// is trusted at once and signs when the old one can't sign for a whole
	// leafLife any more: a year in which every bundle is written again.
	overlap = 2 * leafLife
	// backdated is how much earlier a certificate is valid than it was made:
	// clocks differ.
	backdated = time.Hour
)

// A root is one certificate authority's certificate and key.
type root struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// roots are the authorities that are trusted, the oldest first; never empty.
type roots []root

func newRoots(name string, now time.Time) (roots, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// Successors have names of their own: clients pick an issuer by name.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("%s@%d", name, now.Unix())},
		NotBefore:             now.Add(-backdated),
		NotAfter:              now.Add(rootLife),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return roots{{cert, key}}, nil
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	return n.Add(n, big.NewInt(1)), nil
}

// signer is the authority that signs now: the oldest that outlives what it
// signs, or else the one that lives longest.
func (r roots) signer(now time.Time) root {
	for _, c := range r {
		if c.cert.NotAfter.Sub(now) > leafLife {
			return c
		}
	}
	return slices.MaxFunc(r, func(a, b root) int { return a.cert.NotAfter.Compare(b.cert.NotAfter) })
}

// rotated are the authorities as they should be now: with a successor when the
// last comes near its end, without those that have passed theirs.
func (r roots) rotated(name string, now time.Time) (next roots, same bool, err error) {
	next = slices.DeleteFunc(slices.Clone(r), func(c root) bool { return now.After(c.cert.NotAfter) })
	if !slices.ContainsFunc(next, func(c root) bool { return c.cert.NotAfter.Sub(now) > overlap }) {
		fresh, err := newRoots(name, now)
		if err != nil {
			return nil, false, err
		}
		return append(next, fresh...), false, nil
	}
	return next, len(next) == len(r), nil
}

func (r roots) certificates() []byte {
	var b bytes.Buffer
	for _, c := range r {
		b.Write(encodeCert(c.cert))
	}
	return b.Bytes()
}

// encode is the file: each certificate, then its key.
func (r roots) encode() []byte {
	var b bytes.Buffer
	for _, c := range r {
		b.Write(encodeCert(c.cert))
		key, err := encodeKey(c.key)
		if err != nil { // we made it, or have parsed it
			panic(err)
		}
		b.Write(key)
	}
	return b.Bytes()
}

// parseRoots reads what encode wrote. No error tells anything of a key.
func parseRoots(text []byte) (roots, error) {
	blocks, err := parsePEM(text)
	if err != nil {
		return nil, err
	}
	if len(blocks)%2 != 0 {
		return nil, errors.New("a certificate without its key")
	}
	var r roots
	for i := 0; i < len(blocks); i += 2 {
		if blocks[i].Type != certBlock || blocks[i+1].Type != keyBlock {
			return nil, fmt.Errorf("a %s and a %s where a certificate and its key should be", blocks[i].Type, blocks[i+1].Type)
		}
		cert, err := x509.ParseCertificate(blocks[i].Bytes)
		if err != nil {
			return nil, err
		}
		if !cert.IsCA {
			return nil, fmt.Errorf("the certificate of %s is no authority's", cert.Subject)
		}
		key, err := parseKey(blocks[i+1].Bytes)
		if err != nil {
			return nil, err
		}
		if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(cert.PublicKey) {
			return nil, fmt.Errorf("the certificate of %s is followed by another one's key", cert.Subject)
		}
		r = append(r, root{cert, key})
	}
	return r, nil
}

// parsePEM reads a file that holds nothing but PEM blocks, at least one.
func parsePEM(text []byte) ([]*pem.Block, error) {
	var blocks []*pem.Block
	for {
		text = bytes.TrimSpace(text)
		if len(text) == 0 {
			break
		}
		if !bytes.HasPrefix(text, []byte("-----BEGIN ")) {
			return nil, errors.New("something other than PEM blocks in it")
		}
		block, rest := pem.Decode(text)
		if block == nil {
			return nil, errors.New("a PEM block that isn't whole")
		}
		// Decode skips what it can't read, up to the next that it can.
		if begin := []byte("-----BEGIN "); bytes.Count(text[:len(text)-len(rest)], begin) != 1 {
			return nil, errors.New("a PEM block that isn't whole")
		}
		blocks, text = append(blocks, block), rest
	}
	if len(blocks) == 0 {
		return nil, errors.New("it is empty")
	}
	return blocks, nil
}

func parseKey(der []byte) (crypto.Signer, error) {
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("the key can't be read as PKCS #8")
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, errors.New("the key can't sign")
	}
	return s, nil
}
