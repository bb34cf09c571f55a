//! ServiceAccount tokens: JSON Web Tokens signed with ES256 (RFC 7515, RFC 7519), with upstream's claims.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Longest token that is looked at.
const MAX_LENGTH: usize = 16 << 10;
/// A board without a clock may be a little behind the one that signed.
const LEEWAY_SECONDS: u64 = 60;

/// A name and uid that a token is bound to.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// The private claim `kubernetes.io`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Kubernetes {
    pub(crate) namespace: String,
    pub(crate) serviceaccount: Bound,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) warnafter: Option<u64>,
}

/// What a token says. Times are seconds since 1970.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) iss: String,
    pub(crate) sub: String,
    pub(crate) aud: Vec<String>,
    pub(crate) exp: u64,
    pub(crate) iat: u64,
    pub(crate) nbf: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) jti: Option<String>,
    #[serde(rename = "kubernetes.io")]
    pub(crate) kubernetes: Kubernetes,
}

/// Signs and verifies with one key.
pub(crate) struct Tokens {
    issuer: String,
    key: EcdsaKeyPair,
    key_id: String,
    random: SystemRandom,
}

impl Tokens {
    /// `key_pem` is a PKCS#8 P-256 private key.
    pub(crate) fn new(issuer: String, key_pem: &str) -> Result<Self, String> {
        let der =
            PrivatePkcs8KeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| error.to_string())?;
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &random)
            .map_err(|error| error.to_string())?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        Ok(Self { issuer, key_id: URL_SAFE_NO_PAD.encode(digest), key, random })
    }

    pub(crate) fn issuer(&self) -> &str {
        &self.issuer
    }

    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, String> {
        let header = json!({ "alg": "ES256", "kid": self.key_id });
        let payload = serde_json::to_vec(claims).map_err(|error| error.to_string())?;
        let signed =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(payload));
        let signature =
            self.key.sign(&self.random, signed.as_bytes()).map_err(|_| "no randomness".to_owned())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Checks signature, issuer and times. Who the token speaks for is the caller's matter.
    pub(crate) fn verify(&self, token: &str) -> Result<Claims, &'static str> {
        if token.len() > MAX_LENGTH {
            return Err("token is too long");
        }
        let (signed, signature) = token.rsplit_once('.').ok_or("not a token")?;
        let (header, payload) = signed.split_once('.').ok_or("not a token")?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| "not a token");
        let header: Value = serde_json::from_slice(&decode(header)?).map_err(|_| "not a token")?;
        if header["alg"] != "ES256" {
            return Err("token algorithm is not ES256");
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(signed.as_bytes(), &decode(signature)?)
            .map_err(|_| "token signature is wrong")?;
        let claims: Claims =
            serde_json::from_slice(&decode(payload)?).map_err(|_| "token claims are not understood")?;
        if claims.iss != self.issuer {
            return Err("token issuer is unknown");
        }
        // What our own key has signed proves that it is that late. Upstream would call a token of another node
        // not valid yet on the one whose clock jumped back, or has no battery.
        let now = now().max(claims.iat);
        if claims.exp < now {
            return Err("token has expired");
        }
        if claims.nbf > now + LEEWAY_SECONDS {
            return Err("token is not valid yet");
        }
        Ok(claims)
    }

    /// The public key as a JSON Web Key Set (`/openid/v1/jwks`).
    pub(crate) fn jwks(&self) -> Value {
        // An uncompressed point: 4, x, y.
        let point = self.key.public_key().as_ref();
        json!({ "keys": [{
            "use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": self.key_id,
            "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..65]),
        }]})
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn tokens() -> Tokens {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("key");
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            base64::engine::general_purpose::STANDARD.encode(pkcs8.as_ref())
        );
        Tokens::new("https://issuer".into(), &pem).expect("tokens")
    }

    fn claims() -> Claims {
        Claims {
            iss: "https://issuer".into(),
            sub: "system:serviceaccount:ns:name".into(),
            aud: vec!["https://issuer".into()],
            exp: now() + 600,
            iat: now(),
            nbf: now(),
            jti: None,
            kubernetes: Kubernetes {
                namespace: "ns".into(),
                serviceaccount: Bound { name: "name".into(), uid: "u".into() },
                pod: None,
                node: None,
                secret: None,
                warnafter: None,
            },
        }
    }

    #[test]
    fn what_was_signed_is_verified_and_nothing_else() {
        let tokens = tokens();
        let token = tokens.sign(&claims()).expect("signed");
        assert_eq!(tokens.verify(&token).expect("valid"), claims());
        assert!(self::tokens().verify(&token).is_err(), "another key");
        // Signed by a node whose clock is six hours ahead of this one's.
        let ahead = now() + 6 * 3600;
        let early = Claims { exp: ahead + 600, iat: ahead, nbf: ahead, ..claims() };
        assert!(tokens.verify(&tokens.sign(&early).expect("signed")).is_ok());
        let (signed, signature) = token.rsplit_once('.').expect("dots");
        assert!(tokens.verify(&format!("{signed}A.{signature}")).is_err(), "changed payload");
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let (_, payload) = signed.split_once('.').expect("dots");
        assert!(tokens.verify(&format!("{none}.{payload}.")).is_err(), "no signature");
        for (exp, nbf, iss) in [
            (now() - 1, now(), "https://issuer"),
            (now() + 9, now() + 900, "https://issuer"),
            (now() + 9, now(), "x"),
        ] {
            let token = tokens.sign(&Claims { exp, nbf, iss: iss.into(), ..claims() }).expect("signed");
            assert!(tokens.verify(&token).is_err());
        }
    }
}
