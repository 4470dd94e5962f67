//! A C program that prints what C makes of the header, and what Rust says it must print.

use std::mem::{offset_of, size_of};

use selvage::attributes::*;
use selvage::completion::*;
use selvage::cookie::*;
use selvage::finish::*;
use selvage::node::*;
use selvage::session::*;
use selvage::status::selvage_status;

macro_rules! structure {
    ($lines:ident, $name:ident { $($field:ident),+ }) => {
        $lines.push((format!("sizeof({})", stringify!($name)), size_of::<$name>() as u64));
        $($lines.push((
            format!("offsetof({}, {})", stringify!($name), stringify!($field)),
            offset_of!($name, $field) as u64,
        ));)+
        // Naming every field here makes a new one an error until the probe knows it.
        #[allow(unused)]
        fn whole(value: $name) { let $name { $($field),+ } = value; }
        let _ = whole;
    };
}

macro_rules! constants {
    ($lines:ident, $($name:ident),+) => {
        $($lines.push((format!("({})", stringify!($name)), $name as u64));)+
    };
}

macro_rules! statuses {
    ($lines:ident, $($c:ident = $rust:ident),+) => {
        $($lines.push((format!("({})", stringify!($c)), selvage_status::$rust as u64));)+
    };
}

/// The program's text and the lines that it must print.
pub fn program() -> (String, Vec<String>) {
    let expressions = expressions();
    let prints: String = expressions
        .iter()
        .map(|(what, _)| format!("    printf(\"%s %llu\\n\", \"{what}\", (unsigned long long)({what}));\n"))
        .collect();
    let head = "#include <selvage.h>\n#include <stdio.h>\n\nint main(void) {";
    let source = format!("{head}\n{prints}    return 0;\n}}\n");
    let lines = expressions.iter().map(|(what, value)| format!("{what} {value}")).collect();
    (source, lines)
}

fn expressions() -> Vec<(String, u64)> {
    let mut lines = vec![("(SELVAGE_NUL_TERMINATED)".to_owned(), usize::MAX as u64)];
    {
        structure!(lines, selvage_tag { text });
    }
    {
        structure!(lines, selvage_cookie { id, host });
    }
    {
        structure!(lines, selvage_node_info { name, tag, archive_bytes_max, joined, reserved });
    }
    {
        structure!(lines, selvage_commit { copies, shortfall, version_epoch, reserved, version_counter });
    }
    {
        structure!(
            lines,
            selvage_completion { user_data, session, status, operation, commit, elsewhere, count }
        );
    }
    {
        structure!(
            lines,
            selvage_session_info {
                id,
                cookie,
                version_epoch,
                copies,
                version_counter,
                created_ms,
                expiry_ms,
                attribute_count,
                read_only,
                needs_cookie,
                reserved
            }
        );
    }
    {
        structure!(lines, selvage_value { kind, truth, reserved, integer, number, bytes, bytes_len });
    }
    constants!(lines, SELVAGE_OPEN_EXCLUSIVE, SELVAGE_OPEN_READ_ONLY, SELVAGE_OPEN_UNLOCKED);
    constants!(
        lines,
        SELVAGE_TYPE_BYTES,
        SELVAGE_TYPE_TEXT,
        SELVAGE_TYPE_I64,
        SELVAGE_TYPE_F64,
        SELVAGE_TYPE_BOOL
    );
    constants!(lines, SELVAGE_ACK_ALL, SELVAGE_ACK_ONE, SELVAGE_ACK_NONE);
    constants!(lines, SELVAGE_OPERATION_OPEN, SELVAGE_OPERATION_CREATE, SELVAGE_OPERATION_COMMIT);
    constants!(lines, SELVAGE_OPERATION_DESTROY, SELVAGE_OPERATION_REGENERATE);
    constants!(lines, SELVAGE_OPERATION_DESTROY_OWNER);
    constants!(lines, SELVAGE_SHORT_NOT, SELVAGE_SHORT_NO_MANDATE, SELVAGE_SHORT_SERVERS);
    constants!(lines, SELVAGE_SHORT_LEASE_FULL, SELVAGE_SHORT_NOT_AWAITED);
    statuses!(
        lines,
        SELVAGE_STATUS_OK = Ok,
        SELVAGE_STATUS_PENDING = Pending,
        SELVAGE_STATUS_MISSING = Missing,
        SELVAGE_STATUS_ELSEWHERE = Elsewhere,
        SELVAGE_STATUS_WRONG_TYPE = WrongType,
        SELVAGE_STATUS_EMPTY = Empty,
        SELVAGE_STATUS_NULL = Null,
        SELVAGE_STATUS_INVALID = Invalid,
        SELVAGE_STATUS_TOO_LARGE = TooLarge,
        SELVAGE_STATUS_FORKED = Forked,
        SELVAGE_STATUS_READ_ONLY = ReadOnly,
        SELVAGE_STATUS_UNDERWAY = Underway,
        SELVAGE_STATUS_FULL = Full,
        SELVAGE_STATUS_BUSY = Busy,
        SELVAGE_STATUS_TIMEOUT = Timeout,
        SELVAGE_STATUS_OWNERSHIP_LOST = OwnershipLost,
        SELVAGE_STATUS_LOCK_LOST = LockLost,
        SELVAGE_STATUS_GONE = Gone,
        SELVAGE_STATUS_NOT_READY = NotReady,
        SELVAGE_STATUS_NOT_YET = NotYet,
        SELVAGE_STATUS_UNREACHABLE = Unreachable,
        SELVAGE_STATUS_DENIED = Denied,
        SELVAGE_STATUS_CONFLICT = Conflict,
        SELVAGE_STATUS_OS = Os,
        SELVAGE_STATUS_VERSION_MISMATCH = VersionMismatch,
        SELVAGE_STATUS_TOO_SMALL = TooSmall,
        SELVAGE_STATUS_CORRUPT = Corrupt,
        SELVAGE_STATUS_INTERNAL = Internal
    );
    lines
}
