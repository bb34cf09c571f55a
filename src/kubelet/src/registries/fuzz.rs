//! The file of mirrors and logins, for fuzz/.

/// A `registries.yaml`.
pub fn registries(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(file) = super::parse(text) else { return };
    for image in ["nginx", "quay.io/a/b:1", "mirror.example:5000/x"] {
        let _ = file.logins(image);
    }
}
