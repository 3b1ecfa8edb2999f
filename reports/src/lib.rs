//! stub
use scenarios::Record;
use std::io::{Error, Write};
pub fn html(_: &Record, _: &mut dyn Write) -> Result<(), Error> {
    Ok(())
}
pub fn junit(_: &Record, _: &mut dyn Write) -> Result<(), Error> {
    Ok(())
}
pub fn markdown(_: &Record, _: &mut dyn Write) -> Result<(), Error> {
    Ok(())
}
