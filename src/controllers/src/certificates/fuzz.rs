//! Requests for certificates, for fuzz/.

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

/// The request inside (DER), as it is read after its signature was found to be right; and the bytes as PEM.
pub fn certificate_request(data: &[u8]) {
    let _ = super::request::parse(data);
    if let Ok((_, request)) = X509CertificationRequest::from_der(data) {
        let _ = super::request::asked(&request);
        let _ = request.verify_signature();
    }
}
