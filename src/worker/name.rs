//! The name of a worker.

/// The name of this process in leases and facts. It is different at every start, because in containers the process id is always 1. Two
/// workers of one name would take each other's leases for their own.
pub fn of_process(host: &str) -> String {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    format!("{host}#{}-{}", std::process::id(), &unique[..6])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_workers_of_one_host_and_process_id_have_two_names() {
        let (one, other) = (of_process("rec1"), of_process("rec1"));
        assert_ne!(one, other);
        let begin = format!("rec1#{}-", std::process::id());
        assert!(one.starts_with(&begin) && one.len() == begin.len() + 6, "{one}");
    }
}
