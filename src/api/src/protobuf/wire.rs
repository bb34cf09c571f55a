//! Protobuf's wire format: tags, varints and lengths, without a copy. Every length is checked against
//! what is left before it is used.

use super::ProtobufError;

pub(super) struct Reader<'a> {
    left: &'a [u8],
}

/// One field as it is on the wire.
pub(super) enum Field<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    /// The next field's number and content; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Field<'a>)>, ProtobufError> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| ProtobufError::Malformed("field number"))?;
        let field = match tag & 7 {
            0 => Field::Varint(self.varint()?),
            1 => Field::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length =
                    usize::try_from(self.varint()?).map_err(|_| ProtobufError::Malformed("length"))?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(ProtobufError::Malformed("wire type")),
        };
        Ok(Some((number, field)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtobufError> {
        let (taken, left) =
            self.left.split_at_checked(length).ok_or(ProtobufError::Malformed("ends too early"))?;
        self.left = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtobufError> {
        self.take(N)?.try_into().map_err(|_| ProtobufError::Malformed("ends too early"))
    }

    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtobufError::Malformed("number is too long"))
    }
}

impl<'a> Field<'a> {
    pub(super) fn bytes(&self) -> Result<&'a [u8], ProtobufError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(ProtobufError::Malformed("a number where bytes belong")),
        }
    }

    pub(super) fn text(&self) -> Result<String, ProtobufError> {
        let text =
            std::str::from_utf8(self.bytes()?).map_err(|_| ProtobufError::Malformed("text is not UTF-8"))?;
        Ok(text.to_owned())
    }

    /// Negative numbers are on the wire as very large ones.
    pub(super) fn integer(&self) -> Result<i64, ProtobufError> {
        match self {
            Self::Varint(value) => Ok(value.cast_signed()),
            _ => Err(ProtobufError::Malformed("bytes where a number belongs")),
        }
    }

    pub(super) fn double(&self) -> Result<f64, ProtobufError> {
        match self {
            Self::Fixed64(bits) => Ok(f64::from_bits(*bits)),
            Self::Fixed32(bits) => Ok(f64::from(f32::from_bits(*bits))),
            _ => Err(ProtobufError::Malformed("not a floating-point number")),
        }
    }
}
